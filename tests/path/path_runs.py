"""Shared by the tests of the path: tiny corpora, a run, and one that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.corpus_samples import prepared
from direct_anneal.data import Corpus
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig, PathLosses, descend
from direct_anneal.progress import Silent
from selection.tiny import CONTEXT, documents, write_jsonl

ROWS_PER_SHARD = 5
QUICK: dict[str, Any] = {
    "learning_rates": (1e-3, 1e-2),
    "max_passes": 1.0,
    "num_folds": 2,
    "walk_replay": 0.0,
    "checkpoint_steps": 3,
}


def corpora(directory: Path) -> tuple[Corpus, Corpus]:
    """A validation set of 12 documents and a pool of 12, of which two are in the validation set."""
    directory.mkdir(parents=True, exist_ok=True)
    target = documents(12, seed=1, prefix="v", domains=("code",))
    pool = documents(10, seed=2, prefix="p") + [{**row, "id": f"copy-{row['id']}"} for row in target[:2]]
    write_jsonl(directory / "validation.jsonl", target)
    write_jsonl(directory / "pool.jsonl", pool)
    made = [prepared(directory / name, directory / f"{name}.jsonl") for name in ("validation", "pool")]
    return made[0], made[1]


def descended(
    checkpoint: Path,
    directory: Path,
    validation: Corpus,
    pool: Corpus,
    known_start: NDArray[np.float64] | None = None,
    **options: Any,
) -> PathLosses:
    """The losses of one run."""
    return descend(
        Checkpoint(str(checkpoint)),
        validation,
        pool,
        PathConfig(**{**QUICK, **options}),
        directory=directory / "losses",
        work=directory / "work",
        max_length=CONTEXT,
        stages=Silent(),
        rows_per_shard=ROWS_PER_SHARD,
        known_start=known_start,
    )


def files_of(directory: Path) -> dict[str, bytes]:
    """Everything that a run stores."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "losses" in path.parts
    }


class Died(BaseException):
    """Stands for a kill: nothing that handles errors sees it."""


def descend_until(
    checkpoint: Path,
    directory: Path,
    validation: Corpus,
    pool: Corpus,
    moment: int,
    die: Callable[[], None],
    **options: Any,
) -> bool:
    """Die at the `moment`-th file that is about to get its name, from 0; False where the run ended before."""
    named, rename = 0, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal named
        if directory in Path(target).parents:
            if named == moment:
                die()
            named += 1
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            descended(checkpoint, directory, validation, pool, **options)
        except Died:
            return True
    return False


def descend_until_killed(checkpoint: Path, directory: Path, source: Path, moment: int) -> None:
    """For a process of its own: killed at that moment."""
    torch.set_num_threads(1)
    descend_until(checkpoint, directory, *corpora(source), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
