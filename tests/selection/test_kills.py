"""Killed at any moment and run again: the same bytes, nothing left over."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from direct_anneal.io.atomic import leftovers, remove_directory
from selection.killing import command_in_small_shards, content
from selection.tiny import SKETCH_SIZE, start

KILLS = 30


def test_thirty_kills_at_random_moments_change_nothing(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    """Moments are spread over the time that a whole run takes; a directory sees them until a run in it ends first."""
    rng = random.Random(0)

    def run(out: Path, patience: float | None = None) -> tuple[int, float]:
        """A select from a process of its own, killed when patience ends; its exit code and how long it took."""
        words = ["select", "--model", checkpoint, "--pool", world / "pool", "--validation", world / "validation.jsonl"]
        words += ["--out", out, "--fraction", "0.25", "--sketch-size", SKETCH_SIZE, "--objective", "matching"]
        process = start(command_in_small_shards, [str(word) for word in words], tmp_path / "log")
        started = time.monotonic()
        process.join(patience)
        process.kill()
        process.join()
        assert process.exitcode is not None
        assert process.exitcode in (0, -9), (tmp_path / "log").read_text()
        return process.exitcode, time.monotonic() - started

    assert run(tmp_path / "whole")[0] == 0
    expected = content(tmp_path / "whole")
    assert len(list((tmp_path / "whole").rglob("features-*.npy"))) == 2 * (3 + 8), "there is little to be killed in"

    kills, number, length = 0, 0, run(tmp_path / "again")[1]
    assert content(tmp_path / "again") == expected
    while kills < KILLS:
        out = tmp_path / f"killed-{number}"
        code, _ = run(out, rng.uniform(0, length))
        kills += code != 0
        if code == 0:
            assert content(out) == expected
            number += 1
    assert run(out)[0] == 0
    assert content(out) == expected


def test_a_directory_goes_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a dataset under its own name would be taken for a stranger's by the next run."""
    (tmp_path / "selected").mkdir()
    (tmp_path / "selected" / "state.json").touch()

    def killed(path: Path) -> None:
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_directory(tmp_path / "selected")
    assert not (tmp_path / "selected").exists()
    assert len(leftovers(tmp_path / "selected")) == 1
