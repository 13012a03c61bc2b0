"""Cluster-histogram sampling (CRISP, arXiv:2410.03735): draw documents so that clusters come as often as in the target.

The pool is clustered once, without looking at the target; each document is weighed by its cluster's share of the
target over its share of the pool. Embeddings are the checkpoint's own (the paper takes a sentence encoder's).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.baselines.plain import random

NUM_CLUSTERS = 64
MIN_CLUSTER = 20
_NEVER = -1e3  # log weight of a cluster that the target has nothing of


def cluster_histogram(candidates: Candidates, seed: int, *, num_clusters: int = NUM_CLUSTERS) -> NDArray[np.float64]:
    """Log importance of a document's cluster + Gumbel noise, (N,): the largest are a sample without replacement."""
    pool, target = candidates.embeddings
    order = np.argsort(np.array(candidates.ids, dtype=object))
    weights = histogram_weights(pool, target, order=order, num_clusters=num_clusters)
    # Uniform numbers by id make the noise the same in any order of the pool; 0 and 1 have no finite Gumbel.
    uniform = np.clip(random(candidates, seed), 1e-12, 1 - 1e-12)
    return weights - np.log(-np.log(uniform))


def histogram_weights(
    pool: NDArray[np.float64],
    target: NDArray[np.float64],
    order: NDArray[np.intp] | None = None,
    num_clusters: int = NUM_CLUSTERS,
) -> NDArray[np.float64]:
    """Log of the target's share of each document's cluster over the pool's, (N,).

    Args:
        pool, target: embeddings, (N, H) and (M, H).
        order: of the pool's documents in which clusters are found, so that they hang on ids alone.
        num_clusters: k; fewer where a cluster would have less than 20 documents.

    Cost: k-means, O(N H k) a round.
    """
    from scipy.cluster.vq import kmeans2

    order = np.arange(len(pool)) if order is None else order
    count = max(1, min(num_clusters, len(pool) // MIN_CLUSTER))
    centres, _ = kmeans2(pool[order], count, minit="++", iter=25, seed=0)
    own, nearest = _nearest(pool, centres), _nearest(target, centres)
    of_pool, of_target = (np.bincount(labels, minlength=count) / len(labels) for labels in (own, nearest))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(of_target) - np.log(of_pool)
    found: NDArray[np.float64] = np.where(np.isfinite(logs), logs, _NEVER)[own]
    return found


def _nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.intp]:
    squares = (centres**2).sum(1) - 2 * points @ centres.T  # ‖p‖² is the same for all centres
    found: NDArray[np.intp] = squares.argmin(1)
    return found
