"""Importance resampling on hashed n-grams (DSIR, Xie et al., arXiv:2302.03169)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.baselines.ngrams import counts
from direct_anneal.baselines.plain import random

NUM_BUCKETS = 10_000  # as published
# Published without; a validation set of some hundred documents leaves most buckets empty, and each of them would cost a
# document log(1e8) whatever else it holds.
SMOOTHING = 1.0


def dsir(candidates: Candidates, seed: int) -> NDArray[np.float64]:
    """Return log p_target(x) − log p_pool(x) + Gumbel noise: the largest are a sample without replacement by
    importance.

    p are products over a document's hashed unigrams and bigrams, of frequencies in validation set and pool.
    """
    weights = importance(counts(candidates.pool_texts, NUM_BUCKETS), counts(candidates.validation_texts, NUM_BUCKETS))
    # Uniform numbers by id make the noise the same in any order of the pool; 0 and 1 have no finite Gumbel.
    uniform = np.clip(random(candidates, seed), 1e-12, 1 - 1e-12)
    return weights - np.log(-np.log(uniform))


def importance(pool: Any, validation: Any) -> NDArray[np.float64]:
    """Log importance weights, (N,), from counts of shape (N, buckets) and (M, buckets)."""
    logs = [np.log(_frequencies(each)) for each in (validation, pool)]
    weights: NDArray[np.float64] = np.asarray(pool @ (logs[0] - logs[1]), dtype=np.float64).ravel()
    return weights


def _frequencies(bucket_counts: Any) -> NDArray[np.float64]:
    total = np.asarray(bucket_counts.sum(0), dtype=np.float64).ravel() + SMOOTHING
    frequencies: NDArray[np.float64] = total / total.sum()
    return frequencies
