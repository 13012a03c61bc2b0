"""A finished run, opened for what comes after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus, reopen
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.directory import recorded
from direct_anneal.run.sources import fields_of, sources_of


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedRun:
    """What a run of `select` or `solve` chose.

    Attributes:
        config: as the run recorded it.
        checkpoint: its model, of which nothing is loaded yet.
        max_length: T, tokens of its windows.
        pool: the documents that it chose from.
        selected: (N,) bool, which of them.
    """

    config: SelectConfig
    checkpoint: Checkpoint
    max_length: int
    pool: Corpus
    selected: np.ndarray


def open_finished(run: Path, *, trust_remote_code: bool = False) -> FinishedRun:
    """Open a run without reading a document. What the run has recorded is checked, and trusted in nothing else.

    Raises:
        InputError: the run is not finished, its files do not go together, or its documents have changed since.
    """
    manifest = _manifest(run)
    config = recorded(run, {"overwrite": True, "trust_remote_code": trust_remote_code})
    checkpoint = Checkpoint(config.model, trust_remote_code=trust_remote_code)
    max_length = checkpoint.window(config.max_length)
    origin = Path(manifest.get("features_of") or run)
    pool = reopen(
        sources_of("pool", config, checkpoint, origin, []),
        role="pool",
        fields=fields_of(config),
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=max_length,
        directory=origin / "corpus" / "pool",
        fingerprint=manifest["fingerprints"]["pool"],
    )
    return FinishedRun(
        config=config,
        checkpoint=checkpoint,
        max_length=max_length,
        pool=pool,
        selected=_selected(run / "selection.parquet", pool),
    )


def _manifest(run: Path) -> dict[str, Any]:
    path = run / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        well_formed = isinstance(manifest["fingerprints"]["pool"], str)
        well_formed &= isinstance(manifest.get("features_of"), str | None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise InputError(
            f"RUN_DIR must hold a finished run of select or solve, but {path} is missing or damaged: finish the run "
            "first, with the command that began it"
        )
    return manifest  # type: ignore[no-any-return]


def _selected(path: Path, pool: Corpus) -> np.ndarray:
    try:
        table = pq.read_table(path, columns=["id", "selected"])
        same = (
            table["id"]
            .cast(pa.large_string())
            .combine_chunks()
            .equals(pool.index["id"].cast(pa.large_string()).combine_chunks())
        )
        selected = table["selected"].to_numpy()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"{path} must be readable as the run wrote it, but is not ({' '.join(str(error).split())[:120]}): run "
            "select or solve again with --overwrite"
        ) from error
    if not same or selected.dtype != np.bool_ or not selected.any():
        raise InputError(
            f"{path} must say of every document of the pool, in the pool's order, whether it is selected, but does "
            "not: run select or solve again with --overwrite"
        )
    return np.asarray(selected, dtype=bool)
