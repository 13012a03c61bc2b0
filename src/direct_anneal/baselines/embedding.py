"""Similarity of embeddings to the target (BETR's score, arXiv:2507.12466).

A document counts by the target document that it is most like. The paper embeds with a sentence encoder, and distils
the scores into a classifier; here the embedding is the checkpoint's mean final hidden state, and the score itself
chooses. Embeddings are centred on the pool first: hidden states share a large mean that makes all cosines near 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates


def embedding_similarity(
    candidates: Candidates,
    seed: int,  # noqa: ARG001 (one signature for all)
    *,
    num_nearest: int = 1,
) -> NDArray[np.float64]:
    """Return the mean of a document's `num_nearest` largest cosines to the validation set's embeddings, (N,). Cost: O(N
    M H).
    """
    return largest_cosines(*candidates.embeddings, num_nearest)


def largest_cosines(
    pool: NDArray[np.float64], target: NDArray[np.float64], num_nearest: int = 1
) -> NDArray[np.float64]:
    """Return the mean of the largest cosines of each row of the pool, (N, H), to rows of the target, (M, H), all
    centred on the pool's mean.
    """
    mean, count = pool.mean(0), min(num_nearest, len(target))
    units = _units(target - mean)
    parts = np.array_split(pool, max(1, len(pool) // 4096))
    nearest = [np.partition(_units(part - mean) @ units.T, -count, axis=1)[:, -count:] for part in parts]
    means: NDArray[np.float64] = np.concatenate(nearest).mean(1)
    return means


def _units(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.zeros_like(rows)
    np.divide(rows, lengths, out=units, where=lengths > 0)
    return units
