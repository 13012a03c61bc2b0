"""Baselines that look at no text: chance, everything, and the checkpoint's own loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.io.digests import short_digest


def random(candidates: Candidates, seed: int) -> NDArray[np.float64]:
    """Draw uniformly from [0, 1) by the hash of seed and id: the same whatever the order of the pool."""
    digests = (short_digest(f"{seed}:{name}", 8) for name in candidates.ids)
    return np.array([int.from_bytes(digest) / 2**64 for digest in digests])


def low_perplexity(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature for all)
    """Score by low perplexity: minus the mean loss (CCNet's filter, arXiv:1911.00359)."""
    return candidates.spread(-_losses(candidates))


def middle_perplexity(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001
    """Score by middle perplexity: nearness to the median in rank of loss (arXiv:2309.04564 found it ahead)."""
    losses = _losses(candidates)
    ids = np.array(candidates.pool_gradients.samples["id"].to_pylist(), dtype=object)
    ranks = np.empty(len(losses))
    ranks[np.lexsort((ids, losses))] = np.arange(len(losses))
    return candidates.spread(-np.abs(ranks - (len(losses) - 1) / 2))


def _losses(candidates: Candidates) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = candidates.pool_gradients.samples["loss"].to_numpy()
    return losses
