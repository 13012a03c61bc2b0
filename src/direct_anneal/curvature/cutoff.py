"""The cutoff: rules that count the stiff directions of a spectrum.

r eigenvalues λ > 0, descending; s stiff directions, 1 ≤ s ≤ r.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.names import PAPER_SHARE as PAPER_SHARE

Float = NDArray[np.float64]
Elbow = Callable[[Float], int]


def energy_share(share: float = PAPER_SHARE) -> Elbow:
    """Return the smallest s with Σ_{j≤s} λ_j ≥ share · Σ_j λ_j, up to 1e-12 of the energy.

    Raises:
        ValueError: the share is not in (0, 1].

    Source: arXiv:2605.31175, Algorithm 1.

    >>> energy_share(0.8)(np.array([6.0, 3.0, 1.0]))
    2
    """
    if not 0 < share <= 1:
        raise ValueError(f"energy must be in (0, 1], got {share}")

    def elbow(eigenvalues: Float) -> int:
        cumulative = np.cumsum(eigenvalues)
        return int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12))) + 1

    return elbow


def widest_gap(eigenvalues: Float) -> int:
    """Return the s after which the spectrum falls most: the largest λ_s / λ_{s+1} with λ_s at or above the mean.

    Below the mean lies the bulk, whose last eigenvalues fall off steeply for want of samples. The first of equal
    gaps counts; 1 where there is no second eigenvalue.

    Source: the eigenvalue ratio of Ahn and Horenstein, Econometrica 81(3), 2013, with their bound on s.

    >>> widest_gap(np.array([9.0, 8.0, 2.0, 1.0, 0.1]))
    2
    """
    candidates = int(np.sum(eigenvalues >= eigenvalues.mean() * (1 - 1e-12)))
    candidates = min(candidates, len(eigenvalues) - 1)
    if candidates < 1:
        return 1
    # A ratio that is larger by rounding alone must not move the elbow.
    ratios = eigenvalues[:candidates] / eigenvalues[1 : candidates + 1]
    return int(np.argmax(ratios >= ratios.max() * (1 - 1e-12))) + 1


def fixed_number(count: int) -> Elbow:
    """Take s = count, or all r directions where there are fewer.

    Raises:
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError(f"the number of stiff directions must be at least 1, got {count}")
    return lambda eigenvalues: min(count, len(eigenvalues))
