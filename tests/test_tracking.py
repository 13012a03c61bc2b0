"""Trackers get the numbers of a run: ours is tested with stand-ins, and with each library where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from direct_anneal.compare.pipeline import _tracked
from direct_anneal.config.anneal import AnnealConfig
from direct_anneal.errors import InputError
from direct_anneal.tracking import tracking
from direct_anneal.train import anneal
from selection.tiny import documents, write_jsonl


class StandIn:
    """A tracker's library that remembers its calls."""

    def __init__(self, name: str) -> None:
        self.__name__, self.calls = name, list[tuple[str, Any]]()
        self.__spec__ = SimpleNamespace(name=name)

    def init(self, **options: Any) -> StandIn:
        self.calls.append(("init", options))
        return self

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        self.calls.append(("log", (metrics, step)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture(params=["wandb", "trackio"])
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    library = StandIn(request.param)
    monkeypatch.setitem(sys.modules, request.param, library)  # type: ignore[arg-type]
    return library


def test_a_run_that_goes_on_is_the_same_run_there(stand_in: StandIn, tmp_path: Path) -> None:
    for step in (1, 2):
        with tracking(stand_in.__name__, tmp_path / "run", {"rate": 0.1, "token": "hf_abcdefghijklmnopqrst"}) as log:
            log({"loss": 2.0}, step)
    kinds = [kind for kind, _ in stand_in.calls]
    assert kinds == ["init", "log", "finish"] * 2
    first, again = (options for kind, options in stand_in.calls if kind == "init")
    assert first == again
    assert first["resume"] == "allow"
    assert first["name"].startswith("run")
    assert "hf_abc" not in str(first["config"])
    assert stand_in.calls[1] == ("log", ({"loss": 2.0}, 1))


def test_another_run_is_another_there(stand_in: StandIn, tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        with tracking(stand_in.__name__, tmp_path / "run", {"rate": rate}):
            pass
    one, other = (options for kind, options in stand_in.calls if kind == "init")
    assert (one["name"], one.get("id")) != (other["name"], other.get("id"))


def test_one_that_cannot_be_opened_is_one_line(stand_in: StandIn, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no key\nconfigured")

    stand_in.init = refuse  # type: ignore[method-assign,assignment]
    with (
        pytest.raises(InputError, match="says: no key configured: log in there"),
        tracking(stand_in.__name__, tmp_path / "run", {}),
    ):
        pass


def test_one_that_is_not_installed_is_refused_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("direct_anneal.tracking.find_spec", lambda name: None)
    write_jsonl(tmp_path / "data.jsonl", documents(4, seed=1))
    with pytest.raises(InputError, match=r"wandb is not installed: pip install 'direct-anneal\[wandb\]'"):
        anneal(
            model=checkpoint,
            data=tmp_path / "data.jsonl",
            out=tmp_path / "out",
            epochs=1,
            learning_rate=1e-3,
            track="wandb",
        )
    assert not (tmp_path / "out").exists()


def test_annealing_logs_its_losses(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandIn("trackio")
    monkeypatch.setitem(sys.modules, "trackio", library)  # type: ignore[arg-type]
    write_jsonl(tmp_path / "data.jsonl", documents(40, seed=1))
    options: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-3, "num_tokens": 2 * 64 * 20}
    record = anneal(model=checkpoint, data=tmp_path / "data.jsonl", out=tmp_path / "out", track="trackio", **options)
    logged = [entry for kind, entry in library.calls if kind == "log"]
    assert [(step, metrics["loss"]) for metrics, step in logged] == [(step, loss) for step, loss, _ in record["losses"]]
    assert len(logged) == 2
    assert library.calls[-1] == ("finish", None)


def test_a_comparison_logs_each_run_under_its_place() -> None:
    line = {"scenario": "mine", "arm": "random", "fraction": 0.1, "replay": 0.5, "target_bpb": 2.0, "others_bpb": None}
    assert _tracked(line) == {"mine/random 10%/replay 50%/target_bpb": 2.0}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_with_the_library_itself_and_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    for step in (1, 2):
        with tracking(name, tmp_path / "run", {"rate": 0.1}) as log:
            log({"loss": 2.0 / step}, step)
    assert any((tmp_path / "run" / "tracking").rglob("*")) or any((tmp_path / "trackio").rglob("*"))


def test_what_it_logs_to_changes_no_result() -> None:
    given: dict[str, Any] = {"model": "m", "data": "d", "out": "o", "epochs": 1, "learning_rate": 0.1}
    assert AnnealConfig(**given, track="wandb").defining == AnnealConfig(**given).defining
