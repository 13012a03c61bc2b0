"""Clocks that jump, another number of threads and other hashes change nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from direct_anneal.run.verify_run import verify_run
from selection.pools import chosen, write_world
from selection.tiny import files_below

NOT_TIMED = (".npy", ".parquet", ".bin", ".jsonl")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def whole(checkpoint: Path, world: Path) -> dict[str, bytes]:
    return results(chosen(checkpoint, world, world / "whole").out)


def results(run: Path) -> dict[str, bytes]:
    """Everything that a run computed; records say when, and which files they were made of."""
    return {name: content for name, content in files_below(run).items() if name.endswith(NOT_TIMED)}


def backwards() -> Iterator[float]:
    """A clock that was put back an hour, and runs the wrong way since."""
    now = time.time() - 3600
    return (now - 10 * step for step in count())


def test_clocks_that_jump(
    checkpoint: Path, world: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from tomorrow, and a clock that goes backwards while the run begins, ends and is verified."""
    run = Path(shutil.copytree(world / "whole", tmp_path / "run"))
    shutil.rmtree(run / "features" / "pool")
    for path in run.rglob("*"):
        os.utime(path, (2**32, 2**32))
    clock = backwards()
    monkeypatch.setattr(time, "time", lambda: next(clock))
    chosen(checkpoint, world, run, overwrite=True)
    assert results(run) == whole
    assert not [finding for finding in verify_run(run) if not finding.harmless]


def test_other_numbers_of_threads_go_on(checkpoint: Path, world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Half of the features by one thread, the rest by three."""
    run = Path(shutil.copytree(world / "whole", tmp_path / "run"))
    shutil.rmtree(run / "features" / "pool")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        chosen(checkpoint, world, run, overwrite=True)
    finally:
        torch.set_num_threads(before)
    assert results(run) == whole


def test_other_hashes_of_strings(checkpoint: Path, world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Sets of texts come in another order in each process; nothing hangs on that."""
    own = os.environ.get("PYTHONHASHSEED")
    code = "import sys; from pathlib import Path; from selection.pools import chosen; chosen(*map(Path, sys.argv[1:]))"
    paths = [path for path in sys.path if path]
    environment = {"PYTHONHASHSEED": "2" if own == "1" else "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-c", code, str(checkpoint), str(world), str(tmp_path / "run")]
    subprocess.run(words, env={**os.environ, **environment}, check=True)
    assert results(tmp_path / "run") == whole
