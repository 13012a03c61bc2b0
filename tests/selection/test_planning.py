"""Plans of a selection: exact where they can be, and of each part of a run. benchmarks/plan.py measures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from direct_anneal.cli import main
from direct_anneal.cli.console import size_text
from direct_anneal.cli.plan import _duration
from direct_anneal.errors import InputError
from direct_anneal.features import NGRAM_SIZE
from direct_anneal.objectives.damage import WITHOUT_SIGNS
from direct_anneal.progress import Work
from direct_anneal.run import sources
from direct_anneal.selection import Plan, plan, planning
from direct_anneal.selection.known import Known
from direct_anneal.selection.pipeline import computed
from direct_anneal.selection.planning import WHILE_WALKING
from direct_anneal.selection.stages import Stages
from selection.pools import NUM_POOL, NUM_VALIDATION, chosen, options_of
from selection.tiny import CONTEXT, SKETCH_SIZE, VOCAB_SIZE, documents, files_below, write_checkpoint, write_jsonl


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files where a test can see whether they went."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def planned(model: Path, directory: Path, out: Path, **options: Any) -> Plan:
    usual: dict[str, Any] = {"fraction": 0.25, "objective": "matching"}
    if "objective" not in options:
        usual["objective_options"] = WITHOUT_SIGNS
    return plan(**(options_of(model, directory, out) | usual | options))


def test_of_what_it_reads_whole_it_knows_everything(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    found = planned(checkpoint, world, tmp_path / "out")
    run = chosen(checkpoint, world, tmp_path / "run")
    corpora = run.manifest["corpora"]
    assert found.documents == {role: corpora[role]["documents"] for role in ("pool", "validation")}
    assert found.documents == {"pool": NUM_POOL, "validation": NUM_VALIDATION}
    assert found.tokens == {role: corpora[role]["tokens"] for role in ("pool", "validation")}
    assert found.seconds.keys() == run.manifest["timings"].keys()
    assert all(seconds > 0 for seconds in found.seconds.values())
    # To the byte but for headers of files, of which a pool so small has many, and the records of shards.
    for part, slack in (("corpus", 5_000), ("features", 5_000)):
        actual = sum(len(content) for name, content in files_below(run.out).items() if name.startswith(part))
        assert found.disk[part] == pytest.approx(actual, rel=0.3, abs=slack)


def test_a_walks_state_is_told_apart_from_what_a_path_leaves(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """The state is the weights and both of Adam's moments, in float32."""
    options = {"objective": "path", "objective_options": {"num_folds": 0, "max_passes": 0.5, "learning_rates": (1e-3,)}}
    found = planned(checkpoint, world, tmp_path / "out", **options)
    run = chosen(checkpoint, world, tmp_path / "run", **options)
    left = sum(len(content) for name, content in files_below(run.out).items() if name.startswith("path"))
    assert found.disk["path"] == pytest.approx(left, rel=0.05, abs=2_000)
    weights = sum(array.nbytes for array in safetensors.numpy.load_file(checkpoint / "model.safetensors").values())
    assert found.disk[WHILE_WALKING] == pytest.approx(3 * weights, rel=0.01)


def test_no_path_is_counted_where_matching_would_choose(checkpoint: Path, tmp_path: Path) -> None:
    for role, seed, count in (("pool", 3, 60), ("validation", 4, 50)):
        write_jsonl(tmp_path / f"{role}.jsonl", documents(count, seed=seed, prefix=role, domains=("code",)))
    walk = {"learning_rates": (1e-3,), "num_folds": 0}
    options = {"objective": "blend", "objective_options": walk, "pool": str(tmp_path / "pool.jsonl")}
    found = planned(checkpoint, tmp_path, tmp_path / "out", **options)
    assert not any("path" in stage for stage in found.seconds)
    assert any("no path is counted" in remark for remark in found.remarks)
    options["objective_options"] = {**walk, "matching_below": 0}
    assert any("path" in stage for stage in planned(checkpoint, tmp_path, tmp_path / "out", **options).seconds)


def test_windows_and_flops(checkpoint: Path, tmp_path: Path) -> None:
    """One document of two and a half windows, by hand."""
    length = 2 * CONTEXT + CONTEXT // 2
    write_jsonl(tmp_path / "pool", [{"text": "x" * length}]).rename(tmp_path / "pool.jsonl")
    write_jsonl(tmp_path / "validation.jsonl", documents(8, seed=1))
    found = planned(checkpoint, tmp_path, tmp_path / "out", pool=str(tmp_path / "pool.jsonl"))
    assert (found.windows["pool"], found.tokens["pool"]) == (3, length)
    hidden, inner, layers = 16, 32, 2
    matrices = layers * (4 * hidden * hidden + 3 * hidden * inner) + hidden * VOCAB_SIZE  # the embedding looks up

    def flops(lengths: list[int]) -> float:
        return sum(4.0 * matrices * t + 6.0 * layers * hidden * t * t for t in lengths)

    texts = [len(record["text"]) for record in documents(8, seed=1)]
    cut = [min(CONTEXT, text - first) for text in texts for first in range(0, text, CONTEXT)]
    assert found.flops == pytest.approx(flops([CONTEXT, CONTEXT, CONTEXT // 2, *cut]), rel=1e-9)


def test_a_part_stands_for_the_whole(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the pool, of which the same is read: ten times of everything that grows with it."""
    monkeypatch.setattr(planning, "NUM_SAMPLED", 60)
    write_jsonl(tmp_path / "validation.jsonl", documents(8, seed=1))
    base = documents(60, seed=2)
    found = []
    for times in (1, 10):
        pool = write_jsonl(tmp_path / f"pool-{times}.jsonl", base * times)
        found.append(planned(checkpoint, tmp_path, tmp_path / "out", pool=str(pool)))
    one, ten = found
    for name in ("documents", "tokens", "windows"):
        assert getattr(ten, name)["pool"] == 10 * getattr(one, name)["pool"], name
    assert ten.flops > 8 * one.flops
    validation = 8 * 2 * (SKETCH_SIZE + NGRAM_SIZE)
    assert ten.disk["features"] - validation == pytest.approx(10 * (one.disk["features"] - validation), rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "mc-fisher"},
        {"curvature": "ggn", "num_eigenpairs": 4},
        {"curvature": "hessian", "num_eigenpairs": 4},
        {"objective": "descent", "budget_reference": "validation"},
        {"budget_ratio": 1e-3},  # infeasible, which the prices of a part cannot say for certain
        {"fraction": None, "num_samples": 10, "floors": {"code": 0.5}, "bands": 2},
        {"fraction": None, "num_tokens": 500},
        {"frontier": (0.5, 1.0)},
    ],
)
def test_every_kind_of_selection(
    checkpoint: Path, world: Path, tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(checkpoint, world, tmp_path / "out", **options)
    assert found.seconds["Spectrum of the validation set"] > 0
    assert (found.seconds.get("Frontier", 0) > 0) == ("frontier" in options)
    assert bool(found.remarks) == (options.get("curvature") in ("ggn", "hessian"))


def test_nothing_is_left_and_nothing_is_written_to_the_run(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    run = chosen(checkpoint, world, tmp_path / "run")
    before = files_below(run.out)
    planned(checkpoint, world, run.out)
    planned(checkpoint, world, tmp_path / "out")
    assert files_below(run.out) == before
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_stage_that_plan_knows_nothing_of(
    checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another(config: Any, documents: Any, stages: Stages, found: list[str]) -> Known:
        known = computed(config, documents, stages, found)
        work = Work(role="pool", unit="tokens", forward=1)
        with stages.stage("Another look", "tokens", 1, work=work) as advance:
            advance(1)
        return known

    before = planned(checkpoint, world, tmp_path / "out")
    monkeypatch.setattr(planning, "computed", with_another)
    found = planned(checkpoint, world, tmp_path / "out")
    assert found.seconds.keys() - before.seconds.keys() == {"Another look"}
    assert before.flops < found.flops < 1.5 * before.flops


def test_retained_text_counts(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    retain = write_jsonl(tmp_path / "retain.jsonl", documents(12, seed=5, prefix="r"))
    before = planned(checkpoint, world, tmp_path / "out")
    found = planned(checkpoint, world, tmp_path / "out", retain=str(retain))
    assert found.documents["retain"] == 12
    assert found.seconds["Gradients of the retained text"] > 0
    assert found.flops > before.flops


def test_files_behind_urls_are_not_kept_in_the_run(
    checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would stand in the way of the run itself, which wants a directory that is new or its own."""
    caches: list[Path] = []
    expanded = sources.expand

    def expand(*arguments: Any) -> Any:
        caches.append(arguments[-1])
        return expanded(*arguments)

    monkeypatch.setattr(sources, "expand", expand)
    planned(checkpoint, world, tmp_path / "out")
    assert caches
    assert all(tmp_path / "scratch" in cache.parents for cache in caches)


def test_a_model_without_gradients_is_told(world: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", poisoned=True)
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"text": "~" * 20}] * 20)
    with pytest.raises(InputError, match="gradients of the pool must be finite"):
        planned(model, world, tmp_path / "out", pool=str(pool))


class TestTheCommand:
    def words(self, checkpoint: Path, world: Path, tmp_path: Path) -> list[str]:
        words = ["plan", "--model", str(checkpoint), "--pool", str(world / "pool"), "--out", str(tmp_path / "out")]
        words += ["--objective", "matching", "--sketch-size", str(SKETCH_SIZE)]
        return [*words, "--validation", str(world / "validation.jsonl")]

    def test_prints_all_of_it(
        self, checkpoint: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.words(checkpoint, world, tmp_path), "--fraction", "0.2", "--frontier"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith(f"pool        {NUM_POOL} documents, ")
        assert [line.split()[0] for line in shown[:6]] == ["pool", "validation", "time", "memory", "disk", "compute"]
        assert shown[6] == "where the time goes:"
        assert shown[-1].startswith("next ")
        assert len(shown) == 8 + 12

    def test_refuses_what_select_refuses(
        self, checkpoint: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.words(checkpoint, world, tmp_path)) == 2
        assert "size of the selection must be given once" in capsys.readouterr().err


def test_units() -> None:
    assert [size_text(n) for n in (50, 999_000, 2_340_000, 5e9, 7.2e15)] == [
        "0.1 kB",
        "999.0 kB",
        "2.3 MB",
        "5.0 GB",
        "7,200.0 TB",
    ]
    assert [_duration(s) for s in (0.25, 42, 600, 36_000)] == ["0.25 s", "42 s", "10 min", "10.0 h"]
