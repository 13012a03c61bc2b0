"""Runs again: the same bytes from the same features, interrupted or not, and no mixing with another run."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore
from direct_anneal.gradients import GradientSketcher, Sketches
from direct_anneal.objectives.damage import WITHOUT_SIGNS
from direct_anneal.selection import Run, sketching
from selection.pools import chosen
from selection.tiny import chosen_ids, documents, evidence, files_below, manifest, write_checkpoint, write_jsonl

RESULTS = ("selection.parquet", "selected")

# Of runs by an objective that looks at no sign of damage.
DESCENT: dict[str, Any] = {"objective": "descent", "objective_options": WITHOUT_SIGNS}


def results(out: Path) -> dict[str, bytes]:
    """The files that a run is for; the manifest has the seconds it took, and is not the same twice."""
    return {name: content for name, content in files_below(out).items() if name.startswith(RESULTS)}


@pytest.fixture(scope="module")
def done(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run. To be copied, not changed."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("out") / "run")


@pytest.fixture
def out(done: Run, tmp_path: Path) -> Path:
    """A copy of the finished run: where a run lies is no part of it."""
    return Path(shutil.copytree(done.out, tmp_path / "out"))


class TestAgain:
    @pytest.mark.usefixtures("no_model")
    def test_the_same_request_gives_the_same_bytes_without_the_model(
        self, checkpoint: Path, world: Path, done: Run, out: Path
    ) -> None:
        (out / "selection.parquet").unlink()
        (out / "manifest.json").unlink()
        again = chosen(checkpoint, world, out)
        assert results(out) == results(done.out)
        untimed = [{**run.manifest, "timings": None, "config": None} for run in (done, again)]
        assert untimed[0] == untimed[1]

    def test_elsewhere_and_from_nothing_it_gives_the_same_bytes(
        self, checkpoint: Path, world: Path, done: Run, tmp_path: Path
    ) -> None:
        chosen(checkpoint, world, tmp_path / "elsewhere")
        assert results(tmp_path / "elsewhere") == results(done.out)

    @pytest.mark.usefixtures("no_model")
    def test_another_request_is_refused_and_changes_nothing(
        self, checkpoint: Path, world: Path, done: Run, out: Path
    ) -> None:
        with pytest.raises(InputError, match=r"fraction: there 0\.25, now 0\.5.*overwrite"):
            chosen(checkpoint, world, out, fraction=0.5)
        assert files_below(out) == files_below(done.out)

    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize("change", [{"fraction": 0.5}, DESCENT, {"budget_ratio": 0.7}])
    def test_overwriting_uses_the_features_again(
        self, checkpoint: Path, world: Path, done: Run, out: Path, change: dict[str, Any]
    ) -> None:
        run = chosen(checkpoint, world, out, overwrite=True, **change)
        assert run.manifest["config"] | change == run.manifest["config"]
        features = {name: content for name, content in files_below(done.out).items() if name.startswith("features/")}
        assert features.items() <= files_below(out).items()

    def test_overwriting_computes_features_that_do_not_fit_anew(
        self, checkpoint: Path, world: Path, out: Path, tmp_path: Path
    ) -> None:
        chosen(checkpoint, world, out, seed=1, overwrite=True)
        chosen(checkpoint, world, tmp_path / "fresh", seed=1)
        assert results(out) == results(tmp_path / "fresh")

    def test_overwriting_leaves_nothing_of_the_earlier_selection(
        self, checkpoint: Path, world: Path, out: Path, tmp_path: Path
    ) -> None:
        """An earlier `selected.parquet` beside the new `selected.jsonl` would be taken for a part of it."""
        pool = write_jsonl(tmp_path / "pool.jsonl", documents(20, seed=8))
        content = chosen(checkpoint, world, out, pool=str(pool), overwrite=True).manifest
        assert {path.name for path in out.glob("selected*")} == set(content["files"])

    def test_overwriting_leaves_other_peoples_files(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "selected.parquet").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(InputError, match="holds other files"):
                chosen(checkpoint, world, out, overwrite=overwrite)
        assert [path.name for path in out.iterdir()] == ["selected.parquet"]
        assert (out / "selected.parquet").read_text() == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_checkpoint_is_no_run(self, checkpoint: Path, world: Path, tmp_path: Path, overwrite: bool) -> None:
        """It has a config.json, and may have a manifest.json."""
        shutil.copytree(checkpoint, tmp_path / "out")
        (tmp_path / "out" / "manifest.json").write_text('{"files": ["selected.parquet"]}')
        before = files_below(tmp_path / "out")
        with pytest.raises(InputError, match="holds other files"):
            chosen(checkpoint, world, tmp_path / "out", overwrite=overwrite)
        assert files_below(tmp_path / "out") == before

    def test_overwriting_a_run_leaves_what_is_not_its_own(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        chosen(checkpoint, world, tmp_path / "out")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        chosen(checkpoint, world, tmp_path / "out", fraction=0.5, overwrite=True)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_reused_features_take_domains_and_places_from_the_documents_of_now(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        pool, out = tmp_path / "pool.jsonl", tmp_path / "out"
        rows = [{**document, "kind": f"kind-{i % 2}"} for i, document in enumerate(documents(20, seed=8))]
        write_jsonl(pool, rows)
        chosen(checkpoint, world, out, pool=str(pool))
        pool.write_text("\n\n" + pool.read_text())
        chosen(checkpoint, world, out, pool=str(pool), domain_field="kind", overwrite=True)
        evidence = pq.read_table(out / "selection.parquet")
        assert evidence["domain"].to_pylist() == [row["kind"] for row in rows]
        assert evidence["row"].to_pylist() == list(range(2, 22))

    def test_the_order_of_the_validation_file_does_not_matter(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        """Halves are held out by id: alternating kinds must not end up in halves of their own."""
        limits = []
        for name, order in (("sorted", 1), ("reversed", -1)):
            validation = tmp_path / f"{name}.jsonl"
            write_jsonl(validation, documents(20, seed=9)[::order])
            run = chosen(checkpoint, world, tmp_path / name, validation=str(validation), budget_reference="validation")
            limits.append(run.manifest["budget"]["limit"])
        assert limits[0] == pytest.approx(limits[1], rel=1e-4)  # batches differ, and with them float32's rounding


class TestWhatTheRunStandsOn:
    def test_a_changed_pool_is_refused_and_overwriting_takes_it(
        self, checkpoint: Path, world: Path, tmp_path: Path
    ) -> None:
        pool, out = tmp_path / "pool.jsonl", tmp_path / "out"
        write_jsonl(pool, documents(20, seed=8))
        chosen(checkpoint, world, out, pool=str(pool))
        before = results(out)
        changed = documents(20, seed=8)
        changed[7]["text"] += " and more"
        write_jsonl(pool, changed)
        with pytest.raises(InputError, match=r"data: there .*, now .*overwrite"):
            chosen(checkpoint, world, out, pool=str(pool))
        assert results(out) == before
        chosen(checkpoint, world, out, pool=str(pool), overwrite=True)
        assert evidence(out)["num_tokens"][7].as_py() == len(changed[7]["text"])

    @pytest.mark.usefixtures("no_model")
    def test_a_pool_that_was_only_touched_is_the_same(
        self, checkpoint: Path, done: Run, world: Path, out: Path
    ) -> None:
        for path in (world / "pool").glob("*.jsonl"):
            path.touch()
        chosen(checkpoint, world, out)
        assert results(out) == results(done.out)

    def test_a_changed_model_is_refused(self, checkpoint: Path, world: Path, tmp_path: Path) -> None:
        model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
        pool = write_jsonl(tmp_path / "pool.jsonl", documents(20, seed=8))
        chosen(model, world, tmp_path / "out", pool=str(pool))
        write_checkpoint(model, seed=1)
        with pytest.raises(InputError, match=r"model: there .*, now "):
            chosen(model, world, tmp_path / "out", pool=str(pool))

    def test_a_damaged_shard_is_computed_again(self, checkpoint: Path, world: Path, done: Run, out: Path) -> None:
        shard = out / "features" / "pool" / "features-00000.npy"
        shard.write_bytes(shard.read_bytes()[:-2])
        chosen(checkpoint, world, out)
        assert files_below(out / "features") == files_below(done.out / "features")


class TestInterrupted:
    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sketching, "FeatureStore", partial(FeatureStore, rows_per_shard=8))

    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_it_goes_on_where_it_stopped(
        self, checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        out = tmp_path / "out"
        real = GradientSketcher.sketch
        calls: list[int] = []

        def interrupted(self: GradientSketcher, *args: Any) -> Sketches:
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append(1)
            return real(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(GradientSketcher, "sketch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                chosen(checkpoint, world, out)
        assert not (out / "manifest.json").exists()
        made = [path for path in (out / "features").rglob("features-*.npy") if "ngrams" not in path.parent.name]
        assert len(made) == after  # a shard is one batch here

        def counted(self: GradientSketcher, *args: Any) -> Sketches:
            calls.append(1)
            return real(self, *args)

        monkeypatch.setattr(GradientSketcher, "sketch", counted)
        chosen(checkpoint, world, out)
        assert len(calls) == 3 + 8  # shards of 24 and of 60 rows: none was done twice
        chosen(checkpoint, world, tmp_path / "whole")
        assert results(out) == results(tmp_path / "whole")
        assert not list(out.rglob("*.tmp"))

    def test_shards_without_a_usable_row_do_not_stop_it(self, world: Path, tmp_path: Path) -> None:
        model = write_checkpoint(tmp_path / "model", poisoned=True)
        records = documents(24, seed=9)
        for record in records[8:16]:  # the second shard
            record["text"] += "~"
        pool = write_jsonl(tmp_path / "pool.jsonl", records)
        for objective in ("energy", "descent", "matching"):
            out = chosen(model, world, tmp_path / objective, pool=str(pool), num_samples=12, objective=objective).out
            assert not chosen_ids(out) & {record["id"] for record in records[8:16]}
            assert manifest(out)["num_selected"] == 12


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("left", ["features/coverage.json.tmp", "selected.jsonl.gz.tmp", "frontier.parquet.tmp"])
def test_what_a_kill_left_half_written_goes(checkpoint: Path, world: Path, done: Run, out: Path, left: str) -> None:
    """Leftovers go, be the next run one that writes the same file or not."""
    (out / left).write_bytes(b"half")
    chosen(checkpoint, world, out)
    assert files_below(out).keys() == files_below(done.out).keys()


def test_a_kill_before_the_directory_is_marked_leaves_it_free(
    checkpoint: Path, world: Path, done: Run, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name in ("direct-anneal.lock", "direct-anneal.json.tmp"):
        (tmp_path / "out" / name).write_bytes(b"half")
    chosen(checkpoint, world, tmp_path / "out")
    assert files_below(tmp_path / "out").keys() == files_below(done.out).keys()


def test_a_run_that_failed_leaves_no_result_of_another(checkpoint: Path, world: Path, out: Path) -> None:
    """Results in `out` must be those that direct-anneal.json there names."""
    with pytest.raises(InputError, match="least feasible"):
        chosen(checkpoint, world, out, budget_ratio=1e-3, overwrite=True)
    asked = json.loads((out / "direct-anneal.json").read_text())
    if (out / "manifest.json").exists():
        assert manifest(out)["config"]["budget_ratio"] == asked["budget_ratio"]
