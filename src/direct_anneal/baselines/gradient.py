"""Baselines on gradients: those that `select` makes, so that they cost the same and see the same.

n documents with gradients, M validation samples, R sketch size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.solver import FeatureMatrix

DAMPING = 0.1  # in units of the mean eigenvalue, as LoGra (arXiv:2405.13954)


def gradient_cosine(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature for all)
    """Return the cosine of a document's gradient to the mean validation gradient."""
    return candidates.spread(_along(candidates, _unit(candidates.validation_gradients.dense().mean(0))))


def less(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001
    """Score by LESS (arXiv:2402.04333) at one checkpoint: the largest cosine to a validation domain's mean gradient."""
    z = candidates.validation_gradients.dense()  # (M, R)
    domains = np.array(candidates.validation_gradients.samples["domain"].to_pylist(), dtype=object)
    means = [_unit(z[domains == name].mean(0)) for name in sorted(set(domains.tolist()))]
    return candidates.spread(np.max([_along(candidates, mean) for mean in means], axis=0))


def influence(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001
    """Return the influence on the validation loss, ⟨z_i, (H + δ)⁻¹ z̄_val⟩, H the pool's empirical Fisher in the
    sketch.

    Gradients keep their lengths, as in Koh and Liang (arXiv:1703.04730). Cost: O(n R²).
    """
    pool = candidates.pool_gradients
    mean = candidates.validation_gradients.dense().mean(0)
    return candidates.spread(influence_on(FeatureMatrix(pool.units, scale=pool.norms), mean))


def influence_on(pool: FeatureMatrix, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ⟨z_i, (H + δ)⁻¹ m⟩ of every row, (n,): H = (1/n) Σ z zᵀ, δ a tenth of its mean eigenvalue.

    Args:
        pool: gradients with their lengths, (n, R).
        mean: m, of the validation set, (R,).
    """
    fisher = pool.gram() / pool.shape[0]
    size = len(fisher)
    damping = DAMPING * max(float(np.trace(fisher)) / size, np.finfo(np.float64).tiny)
    return pool.dot(np.asarray(np.linalg.solve(fisher + damping * np.eye(size), mean), dtype=np.float64))


def _along(candidates: Candidates, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return inner products of the unit gradients with a direction, (n,)."""
    return FeatureMatrix(candidates.pool_gradients.units).dot(direction)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector
