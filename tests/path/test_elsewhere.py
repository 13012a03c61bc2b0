"""Losses computed by others, and kept behind a URL: the same bytes as here."""

from __future__ import annotations

import importlib.metadata
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig, PathLosses, descend
from direct_anneal.path.scorer import Elsewhere, Found, Point, Shard
from direct_anneal.progress import Silent
from direct_anneal.selection.losses import ScorerBuilder
from direct_anneal.selection.sketching import on_any_machine
from path.path_runs import QUICK, ROWS_PER_SHARD, corpora, files_of
from selection.tiny import CONTEXT, write_checkpoint

OPTIONS: dict[str, Any] = {**QUICK, "learning_rates": (1e-2,), "num_restrained": 2}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    return corpora(tmp_path_factory.mktemp("corpora"))


def run(
    checkpoint: Path,
    given: tuple[Corpus, Corpus],
    work: Path,
    home: Path | str,
    elsewhere: Elsewhere | None = None,
    **options: Any,
) -> PathLosses:
    return descend(
        Checkpoint(str(checkpoint)),
        *given,
        PathConfig(**(OPTIONS | options)),
        directory=home,
        work=work,
        max_length=CONTEXT,
        stages=Silent(),
        rows_per_shard=ROWS_PER_SHARD,
        elsewhere=elsewhere,
    )


@pytest.fixture(scope="module")
def here(
    checkpoint: Path, given: tuple[Corpus, Corpus], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PathLosses]:
    directory = tmp_path_factory.mktemp("here")
    return directory, run(checkpoint, given, directory / "work", directory / "losses")


def builder(checkpoint: Path, **options: Any) -> ScorerBuilder:
    config = SelectConfig(
        **{"model": checkpoint, "pool": "p", "validation": "v", "out": "o", "fraction": 0.5, **options}
    )
    chosen = Checkpoint.choosing(config).weights_fingerprint()
    return ScorerBuilder(
        on_any_machine(config), chosen, importlib.metadata.version("direct-anneal"), CONTEXT, "float32"
    )


def sent(value: Any) -> Any:
    """Send it through pickle, as another process gets it."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 (our own)


class Workers:
    """Two workers that take shards in turns, each with a model of its own; all goes through a pickle, as to a cluster.

    Args:
        built: of both.
        failing: of the first calls, for which a batch does not fit into memory.
    """

    def __init__(self, built: ScorerBuilder, failing: int = 0) -> None:
        self.scorers = [sent(built)() for _ in range(2)]
        self.failing, self.batch_tokens = failing, list[int]()

    def __call__(self, shards: Iterable[Shard]) -> Iterator[Found | None]:
        for place, shard in enumerate(shards):
            self.batch_tokens.append(shard.batch_tokens)
            if self.failing:
                self.failing -= 1
                yield None
                continue
            yield sent(self.scorers[place % 2](sent(shard)))


def test_workers_give_the_bytes_of_this_process(
    here: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
) -> None:
    run(checkpoint, given, tmp_path / "work", tmp_path / "losses", Workers(builder(checkpoint)))
    assert files_of(tmp_path) == files_of(here[0])


def test_so_do_they_after_walks_with_replay(given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path) -> None:
    losses = {}
    for name, elsewhere in (("here", None), ("there", Workers(builder(checkpoint)))):
        home = tmp_path / name / "losses"
        losses[name] = run(checkpoint, given, tmp_path / name / "work", home, elsewhere, walk_replay=0.5)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    assert (losses["there"].drops != 0).any()


def test_also_into_an_object_store_where_nothing_else_is_left(
    here: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
) -> None:
    home = f"memory://{tmp_path.name}/losses"
    losses = run(checkpoint, given, tmp_path / "work", home, Workers(builder(checkpoint)))
    files = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    stored = {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}
    assert stored == files_of(here[0])
    np.testing.assert_array_equal(losses.ends, here[1].ends)
    again = run(checkpoint, given, tmp_path / "none", home)  # all is there: no model is loaded, no walk made
    np.testing.assert_array_equal(again.slopes, losses.slopes)
    assert not (tmp_path / "none").exists()


def test_a_batch_that_does_not_fit_is_halved_there_too(
    here: tuple[Path, PathLosses], given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path
) -> None:
    workers = Workers(builder(checkpoint), failing=2)  # of three shards at the start, the first two
    losses = run(checkpoint, given, tmp_path / "work", tmp_path / "losses", workers)
    assert workers.batch_tokens[:5] == [2048, 1024, 512, 512, 512]
    np.testing.assert_allclose(losses.start, here[1].start, rtol=1e-5)


def test_what_never_fits_is_told(given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model and one window must fit into memory, but they do not"):
        run(checkpoint, given, tmp_path / "work", tmp_path / "losses", Workers(builder(checkpoint), failing=10**6))


def test_workers_round_weights_alike(given: tuple[Corpus, Corpus], checkpoint: Path, tmp_path: Path) -> None:
    built = replace(builder(checkpoint), is_rounded=True)
    own = {"num_restrained": 0, "scored_weights": "int8"}
    for name, elsewhere in (("here", None), ("there", Workers(built))):
        run(checkpoint, given, tmp_path / name / "work", tmp_path / name / "losses", elsewhere, **own)
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_worker_holds_one_model_where_it_computes(
    here: tuple[Path, PathLosses], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, is_rounded: bool
) -> None:
    """It begins at the start; what it returns to that with is loaded beside the device, and gives the same bytes."""
    load, devices = Checkpoint.load_model, list[str]()

    def noted(self: Checkpoint, device: str, *arguments: Any, **options: Any) -> Any:
        devices.append(device)
        return load(self, "cpu", *arguments, **options)

    monkeypatch.setattr(Checkpoint, "load_model", noted)
    built = replace(builder(checkpoint), is_rounded=is_rounded)
    object.__setattr__(built.config, "device", "cuda:7")  # a machine of its own
    scorer = built()
    start, end = (Point(place=str(here[0] / "work"), weights=name) for name in (None, "end-whole.safetensors"))
    contents = [np.arange(3, 3 + length) for length in (30, 7, 40)]

    def nats(point: Point) -> Any:
        shard = Shard(point=point, contents=contents, num_prompt=np.zeros(3, dtype=np.int64), batch_tokens=512)
        found = scorer(shard)
        assert found is not None
        return found["nats"]

    first = nats(start)
    assert devices == ["cuda:7"]
    moved = nats(end)
    np.testing.assert_array_equal(nats(start), first)
    np.testing.assert_array_equal(nats(end), moved)
    assert (moved != first).any()
    assert devices == ["cuda:7", "cpu"]


def test_a_worker_loads_the_chooser_from_anywhere(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "large", seed=3)
    monkeypatch.chdir(checkpoint.parent)
    built = builder(tmp_path / "large", chooser=checkpoint.name)
    monkeypatch.chdir(tmp_path)
    scorer = sent(built)()
    assert built.config.chooser == str(checkpoint)
    assert built.weights == Checkpoint(str(checkpoint)).weights_fingerprint()
    assert scorer is not None


def test_another_model_there_is_refused(checkpoint: Path) -> None:
    built = builder(checkpoint)
    with pytest.raises(InputError, match="must be the same on every machine, but is"):
        ScorerBuilder(built.config, "another", built.version, CONTEXT, "float32")()
