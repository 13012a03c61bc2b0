"""`features` as jobs side by side: the bytes of one process, whatever is killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from direct_anneal.cli import main
from direct_anneal.config.features import ComputeConfig
from direct_anneal.errors import InputError
from direct_anneal.selection import compute_features, merge_features, select_again
from selection.pools import options_of
from selection.tiny import documents, files_below, start, write_checkpoint, write_jsonl

ROLES = ("pool", "pool-ngrams")
ROWS = 8  # of a shard: ten of the pool, three of the validation set


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_small(monkeypatch.setattr)


def _make_small(setattr_: Any) -> None:
    from direct_anneal.features.store import FeatureStore
    from direct_anneal.path.pipeline import descend, descend_in_part

    for function in (FeatureStore.__init__, descend, descend_in_part):
        setattr_(function, "__kwdefaults__", {**function.__kwdefaults__, "rows_per_shard": ROWS})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_checkpoint(directory / "model")
    write_jsonl(directory / "pool", documents(80, seed=2, prefix="p")).rename(directory / "pool.jsonl")
    write_jsonl(directory / "validation.jsonl", documents(20, seed=3, prefix="v", domains=("prose", "code")))
    return directory


def options(world: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {**options_of(world / "model", world, out), "pool": str(world / "pool.jsonl"), **more}


def _killed_after(count: int, given: dict[str, Any]) -> None:
    """Compute, and kill the process with SIGKILL when it is about to put its `count`-th file in place."""
    _make_small(setattr)
    replaced = Path.replace

    def counting(path: Path, target: Any) -> Path:
        nonlocal count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replaced(path, target)

    Path.replace = counting  # type: ignore[method-assign,assignment]
    compute_features(**given)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    patch = pytest.MonkeyPatch()
    _make_small(patch.setattr)
    out = tmp_path_factory.mktemp("whole") / "run"
    compute_features(**options(world, out))
    patch.undo()
    return {name: content for name, content in files_below(out).items() if name != "options.json"}  # names itself


def merged(out: Path) -> dict[str, bytes]:
    merge_features(out)
    return {name: content for name, content in files_below(out).items() if name != "options.json"}


def test_three_jobs_give_the_bytes_of_one_process(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number in (2, 0, 1):
        compute_features(**options(world, out, shards=f"{number}/3"))
    assert len({path.stat().st_ino for path in out.glob("jobs/**/pool/*.tokens")}) == 1, "tokenised by one job, for all"
    made = [sorted(path.name for path in out.glob(f"jobs/*/features/{role}/features-*.npy")) for role in ROLES]
    assert made[0] == made[1] == [f"features-{shard:05d}.npy" for shard in range(10)], "n-grams are the jobs', too"
    assert merged(out) == whole


@pytest.mark.parametrize("count", [0, 6, 12, 20])
def test_a_killed_job_goes_on(world: Path, whole: dict[str, bytes], tmp_path: Path, count: int) -> None:
    out = tmp_path / "run"
    process = start(_killed_after, count, options(world, out, shards="1/3"))
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    for number in (0, 2):
        compute_features(**options(world, out, shards=f"{number}/3"))
    with pytest.raises(InputError, match=r"missing|run its job again|run again the jobs 1 of 3"):
        merge_features(out)
    compute_features(**options(world, out, shards="1/3"))
    assert merged(out) == whole


class TestLossesAlongThePath:
    """Losses along a path with slopes, whose pool has documents of the validation set."""

    PATH: ClassVar[dict[str, Any]] = {"num_folds": 2, "max_passes": 1.0, "learning_rates": 3e-3, "num_restrained": 1}

    def given(self, world: Path, out: Path, **more: Any) -> dict[str, Any]:
        pool = out.parent / "pool.jsonl"
        if not pool.exists():
            write_jsonl(pool, documents(20, seed=2, prefix="p") + documents(3, seed=3, prefix="both"))
        return options(world, out, **{"pool": str(pool), "path": self.PATH, **more})

    def test_of_jobs_are_those_of_one_process(self, world: Path, tmp_path: Path) -> None:
        compute_features(**self.given(world, tmp_path / "whole"))
        out = tmp_path / "run"
        process = start(_killed_after, 40, self.given(world, out, shards="1/2"))
        compute_features(**self.given(world, out, shards="0/2"))
        process.join(600)
        assert process.exitcode == -signal.SIGKILL
        with pytest.raises(InputError, match=r"missing|run its job again|run again the jobs 1 of 2"):
            merge_features(out)
        compute_features(**self.given(world, out, shards="1/2"))
        end = out / "jobs" / "1-of-2" / "path" / "end-whole.safetensors"
        kept = end.read_bytes()
        end.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(InputError, match="1-of-2 must have walked the path to the bit as job 0 did"):
            merge_features(out)
        end.write_bytes(kept)
        (out / "jobs" / "1-of-2" / "features" / "pool-path" / "whole" / "columns-00001.json").unlink()
        with pytest.raises(InputError, match="must have all 3 shards of the losses along the path, but 1 are missing"):
            merge_features(out)
        compute_features(**self.given(world, out, shards="1/2"))
        merged_files = merged(out)
        whole = {name: content for name, content in files_below(tmp_path / "whole").items() if name != "options.json"}
        assert merged_files.keys() == whole.keys()
        assert [name for name, content in whole.items() if merged_files[name] != content] == []
        every = {**self.PATH, "min_order": 0, "max_repeated": 1.0, "max_common": 1.0}  # no document counts as damaged
        chosen = select_again(run=out, out=tmp_path / "chosen", objective="path", objective_options=every, fraction=0.2)
        assert len(chosen.selection.indices) == 5

    def test_a_job_with_other_options_computes_anew_what_these_change(self, world: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        for number in range(2):
            compute_features(**self.given(world, out, shards=f"{number}/2"))
        deeper = {"path": {**self.PATH, "max_passes": 2.0}}
        with pytest.raises(InputError, match="pass overwrite to compute them anew"):
            compute_features(**self.given(world, out, shards="0/2", **deeper))
        before = self._losses_in(out)
        compute_features(**self.given(world, out, shards="0/2", overwrite=True, **deeper))
        after = self._losses_in(out)
        others = [name for name in before if name.startswith("1-of-2")]
        assert {name: after[name] for name in others} == {name: before[name] for name in others}, "another job's"
        compute_features(**self.given(world, out, shards="1/2", overwrite=True, **deeper))
        compute_features(**self.given(world, out, shards="0/2", overwrite=True, **deeper))
        compute_features(**self.given(world, tmp_path / "whole", **deeper))
        merged_files = merged(out)
        for name, content in files_below(tmp_path / "whole").items():
            if name.startswith("features/"):
                assert merged_files[name] == content, name

    @staticmethod
    def _losses_in(out: Path) -> dict[str, bytes]:
        found = files_below(out / "jobs")
        return {name: content for name, content in found.items() if "pool-path" in name}

    def test_options_must_be_those_of_the_objective(self, world: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="num_fold"):
            ComputeConfig(**options(world, tmp_path, path={"num_fold": 3}))


def test_missing_jobs_and_shards_are_named(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number in (0, 2):
        compute_features(**options(world, out, shards=f"{number}/3"))
    with pytest.raises(InputError, match="must hold all 3 jobs, but 1 is missing: run features with shards 1/3"):
        merge_features(out)
    compute_features(**options(world, out, shards="1/3"))
    (out / "jobs" / "1-of-3" / "features" / "pool" / "features-00004.npy").unlink()
    with pytest.raises(InputError, match=r"must have all 10 shards of the pool, but 1 are .*: run again the jobs 1 of"):
        merge_features(out)
    shutil.copytree(out / "jobs" / "0-of-3", out / "jobs" / "0-of-2")
    with pytest.raises(InputError, match="must hold the jobs of one division, but there are some of 2 and 3"):
        merge_features(out)


def test_jobs_of_other_options_do_not_mix(world: Path, tmp_path: Path) -> None:
    compute_features(**options(world, tmp_path / "run", shards="0/2"))
    compute_features(**options(world, tmp_path / "run", shards="1/2", seed=1))
    with pytest.raises(InputError, match="1-of-2 must be of the same model, documents and options as job 0"):
        merge_features(tmp_path / "run")


def test_options_that_do_not_go_with_jobs(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shards must be I/N"):
        ComputeConfig(**options(world, tmp_path, shards="4"))
    with pytest.raises(InputError, match="shards must be left out with engine ray and with features"):
        ComputeConfig(**options(world, tmp_path, shards="0/4", features="memory://x"))
    (tmp_path / "other.txt").touch()
    with pytest.raises(InputError, match=r"out must be new, empty or of jobs, but .* holds other.txt"):
        compute_features(**options(world, tmp_path, shards="0/4"))


def test_the_commands(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    given = ["--model", str(world / "model"), "--pool", str(world / "pool.jsonl"), "--sketch-size", "32"]
    given += ["--validation", str(world / "validation.jsonl"), "--out", out]
    assert main(["merge", out]) == 2
    assert "must hold jobs of score or features" in capsys.readouterr().err
    for number in range(2):
        assert main(["features", *given, "--shards", f"{number}/2"]) == 0
    assert f"When all jobs are done: direct-anneal merge {out}" in capsys.readouterr().out
    assert main(["merge", out, "--fraction", "0.1"]) == 2
    assert "use solve to choose" in capsys.readouterr().err
    assert main(["merge", out]) == 0
    assert f"{out}/features is complete" in capsys.readouterr().out
    assert main(["solve", out, "--objective", "matching", "--fraction", "0.2", "--out", str(tmp_path / "chosen")]) == 0
