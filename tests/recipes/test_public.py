"""recipes/public at toy size: a local hub cache with two revisions of a checkpoint, offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selection.tiny import documents, write_checkpoint, write_jsonl

SCRIPT = Path(__file__).parents[2] / "recipes" / "public" / "annealing.sh"
NAME = "toy/checkpoints"


def write_cache(cache: Path) -> None:
    """Write what the hub's library leaves: snapshots by commit, and branches that name them."""
    repository = cache / f"models--{NAME.replace('/', '--')}"
    for branch, seed in (("stage1-step-100", 0), ("stage1-step-200", 1)):
        commit = f"{seed:040x}"
        write_checkpoint(repository / "snapshots" / commit, seed=seed)
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_annealing_mixes_go_from_a_revision_to_weights(tmp_path: Path) -> None:
    write_cache(tmp_path / "hub")
    write_jsonl(tmp_path / "sample.jsonl", documents(90, seed=2, prefix="p"))
    write_jsonl(tmp_path / "validation.jsonl", documents(24, seed=3, prefix="v", domains=("prose",)))
    (tmp_path / "pool").mkdir()
    for number in range(2):
        write_jsonl(tmp_path / "pool" / f"{number}.jsonl", documents(60, seed=10 + number, prefix=f"q{number}-"))
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "DIRECT_ANNEAL": f"{sys.executable} -m direct_anneal",
        "MODEL": NAME,
        "REVISION": "stage1-step-200",
        "SAMPLE": str(tmp_path / "sample.jsonl"),
        "POOL": str(tmp_path / "pool"),
        "VALIDATION": str(tmp_path / "validation.jsonl"),
        "OUT": str(tmp_path / "out"),
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "OPTIONS": "--sketch-size 32",
    }
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "120 documents scored" in done.stdout
    assert "target_ratio" in done.stdout
    assert (tmp_path / "out" / "scores" / "selected.json").exists()
