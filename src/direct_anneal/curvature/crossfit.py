"""How far the spectrum is the validation samples' own: stiff cost in sample against held out.

M validation samples, R sketch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from direct_anneal.curvature.spectrum import Spectrum


@dataclass(frozen=True)
class CrossFit:
    """Stiff costs of the validation samples under the spectrum of one half of them.

    Attributes:
        in_sample: shape (M,), under the spectrum of the sample's own half.
        held_out: shape (M,), under that of the other half: what a new sample of the same kind costs.
    """

    in_sample: NDArray[np.float64]
    held_out: NDArray[np.float64]

    @property
    def overfit(self) -> float:
        """Mean cost in sample over held out: 1 where the spectrum generalises, more where it learned its samples."""
        held_out = float(self.held_out.mean())
        return float(self.in_sample.mean()) / held_out if held_out > 0 else float("inf")


def cross_fit(values: ArrayLike, energy: float = 0.945) -> CrossFit:
    """Stiff costs in sample and held out; samples alternate between the two halves.

    Args:
        values: Z, shape (M, R), M ≥ 2, neither half all zero.
        energy: the elbow's share, as in `Spectrum.from_sketches`.

    Raises:
        ValueError: fewer than two samples, or a half without a spectrum.

    Source: ours. Cost: two spectra of M/2 samples.
    """
    z = np.asarray(values, dtype=np.float64)
    if len(z) < 2:
        raise ValueError(f"cross-fitting needs at least two validation samples, got {len(z)}")
    in_sample, held_out = np.empty(len(z)), np.empty(len(z))
    for own, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        spectrum = Spectrum.from_sketches(z[own], energy)
        in_sample[own] = spectrum.stiff_cost(z[own])
        held_out[other] = spectrum.stiff_cost(z[other])
    return CrossFit(in_sample, held_out)
