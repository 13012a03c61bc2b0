"""Shared by the extraction tests and the processes that they kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import torch

from data.corpus_samples import prepared
from direct_anneal.data import Corpus
from direct_anneal.features import FeatureStore, Local, extract
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.checkpoint import Checkpoint
from selection.tiny import CONTEXT, SKETCH_SIZE

ROWS_PER_SHARD = 5


def sketcher(checkpoint: Path) -> GradientSketcher:
    """The sketcher that every extraction here uses."""
    return GradientSketcher(Checkpoint(str(checkpoint)).load_model("cpu", "float32"), SKETCH_SIZE)


def store_for(corpus: Corpus, directory: Path | str, rows_per_shard: int = ROWS_PER_SHARD) -> FeatureStore:
    """A store that fits the corpus."""
    return FeatureStore(
        directory,
        num_samples=corpus.num_samples,
        sketch_size=SKETCH_SIZE,
        fingerprint={"data": corpus.fingerprint},
        rows_per_shard=rows_per_shard,
    )


def extracted(
    checkpoint: Path, corpus: Corpus, directory: Path | str, rows_per_shard: int = 5, **options: Any
) -> FeatureStore:
    """The store of the corpus's features, complete."""
    store = store_for(corpus, directory, rows_per_shard)
    extract(corpus, store, Local(lambda: sketcher(checkpoint)), **({"max_length": CONTEXT} | options))
    return store


def extract_until_killed(checkpoint: Path, pool: Path, directory: Path, moment: int) -> None:
    """For a process of its own: extract, and die without warning at the `moment`-th step of writing, from 0.

    A file is written in three steps: its bytes (of which half arrive), their way to the disk, and its name.
    """
    torch.set_num_threads(1)
    corpus = prepared(directory / "corpus", pool)
    steps = 0

    def reached() -> bool:
        nonlocal steps
        steps += 1
        return steps > moment

    write_bytes, fsync, replace = Path.write_bytes, os.fsync, Path.replace

    def writing(path: Path, data: bytes | memoryview) -> int:
        if reached():
            write_bytes(path, bytes(data[: len(data) // 2]))
            _die()
        return write_bytes(path, data)

    def flushing(descriptor: int) -> None:
        if reached():
            _die()
        fsync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        if reached():
            _die()
        return replace(path, target)

    Path.write_bytes = writing  # type: ignore[method-assign]
    os.fsync = flushing
    Path.replace = renaming  # type: ignore[method-assign, assignment]
    extracted(checkpoint, corpus, directory / "store")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")
