"""Many documents out of few: rows like those that were computed, to choose among as many as there will be.

N samples of the pool, R sketch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.features import SketchedGradients
from direct_anneal.features.store import ROWS_PER_SHARD
from direct_anneal.run.layout import RETAIN
from direct_anneal.selection.known import Known
from direct_anneal.solver import Block


def synthetic_rows(known: Known, corpora: Mapping[str, Corpus]) -> Known:
    """Build what might be known of other documents: each has what one of these has, mixed with another's directions.

    Args:
        corpora: the other documents, by role.
    """
    rng = np.random.default_rng(0)
    gradients = {role: _alike(found, corpora[role].index, rng) for role, found in known.gradients.items()}
    path = known.path
    if path is not None:
        index = corpora["pool"].index
        path = replace(path.take(rng.integers(len(path), size=len(index))), ids=index["id"].combine_chunks())
    return replace(
        known,
        corpora=corpora,
        pool=gradients["pool"],
        validation=gradients["validation"],
        retain=gradients.get(RETAIN),
        path=path,
    )


def _alike(found: SketchedGradients, index: pa.Table, rng: np.random.Generator) -> SketchedGradients:
    """Return gradients for the documents of an index, no two of them the same."""
    first, second = rng.integers(len(found), size=(2, len(index)))
    shares = rng.random((len(index), 1))
    samples = index
    for name in ("loss", "grad_norm"):
        samples = samples.append_column(name, found.samples[name].take(pa.array(first)))

    def mixed(blocks: Sequence[Block]) -> list[NDArray[np.float16]]:
        if not len(blocks):
            return []
        rows = np.concatenate([np.asarray(block[:], dtype=np.float32) for block in blocks])
        units = rows[first] + shares.astype(np.float32) * rows[second]
        lengths = np.linalg.norm(units, axis=1, keepdims=True)
        units /= np.where(lengths > 0, lengths, 1)
        halves = units.astype(np.float16)
        return [halves[start : start + ROWS_PER_SHARD] for start in range(0, len(halves), ROWS_PER_SHARD)]

    return SketchedGradients(
        mixed(found.units),
        samples["grad_norm"].to_numpy(),
        samples,
        found.quarantined.slice(0, 0),
        None if found.ngrams is None else mixed(found.ngrams),
    )
