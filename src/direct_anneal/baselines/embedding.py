"""Similarity of embeddings to the target (BETR's score, arXiv:2507.12466).

A document counts by the target document that it is most like. The paper embeds with a sentence encoder, and distils
the scores into a classifier; here the embedding is the checkpoint's mean final hidden state, and the score itself
chooses. Embeddings are centred on the pool first: hidden states share a large mean that makes all cosines near 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates


def embedding_similarity(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature)
    """Largest cosine of a document's embedding to one of the validation set's, (N,). Cost: O(N M H)."""
    return largest_cosines(*candidates.embeddings)


def largest_cosines(pool: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest cosine of each row of the pool, (N, H), to a row of the target, (M, H), both around the pool's mean."""
    mean = pool.mean(0)
    units = _units(target - mean)
    found = [(_units(part - mean) @ units.T).max(1) for part in np.array_split(pool, max(1, len(pool) // 4096))]
    return np.concatenate(found)


def _units(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.zeros_like(rows)
    np.divide(rows, lengths, out=units, where=lengths > 0)
    return units
