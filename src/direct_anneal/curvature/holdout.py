"""Overfitting of the spectrum: stiff cost in sample against held out.

M validation samples, R sketch size, m bands.
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
        in_sample: shape (M, m), under the spectrum of the sample's own half.
        held_out: shape (M, m), under that of the other half: what a new sample of the same kind costs.
    """

    in_sample: NDArray[np.float64]
    held_out: NDArray[np.float64]

    @property
    def overfit(self) -> float:
        """Mean cost in sample over held out: 1 where the spectrum generalises, more where it learned its samples."""
        held_out = float(self.held_out.sum())
        return float(self.in_sample.sum()) / held_out if held_out > 0 else float("inf")


def cross_fit(values: ArrayLike, halves: tuple[Spectrum, Spectrum], num_bands: int = 1) -> CrossFit:
    """Compute stiff costs in sample and held out, whichever estimator the halves' spectra came from.

    Args:
        values: Z, shape (M, R): gradients, raw or unit, around zero or their mean.
        halves: spectra of the samples at even and at odd positions.
        num_bands: m, cut in each half's spectrum by itself.

    Raises:
        ValueError: a half has fewer than m stiff directions.

    Source: ours. Cost O(M R s).
    """
    z = np.asarray(values, dtype=np.float64)
    in_sample, held_out = np.empty((len(z), num_bands)), np.empty((len(z), num_bands))
    parts = (slice(0, None, 2), slice(1, None, 2))
    for spectrum, own, other in zip(halves, parts, parts[::-1], strict=True):
        in_sample[own] = spectrum.band_costs(z[own], num_bands)
        held_out[other] = spectrum.band_costs(z[other], num_bands)
    return CrossFit(in_sample, held_out)


def cross_energies(
    values: ArrayLike, halves: tuple[Spectrum, Spectrum]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (v_jᵀ z)² along each direction, of the half that v_j is from and of the other, averaged over the two.

    Of the empirical Fisher the first is the mean of the halves' eigenvalues, and the second what they are worth to new
    samples: a spectrum that has learned its own falls off much slower there.

    Args:
        values: Z, shape (M, R).
        halves: as for `cross_fit`.

    Returns:
        in sample and held out, shape (r,) each, r the smaller rank.

    Source: ours. Cost O(M R r).
    """
    z = np.asarray(values, dtype=np.float64)
    rank = min(len(spectrum.eigenvalues) for spectrum in halves)
    even, odd = z[0::2], z[1::2]
    energies = [
        [np.square(part @ spectrum.eigenvectors[:, :rank]).mean(axis=0) for part in parts]
        for spectrum, parts in zip(halves, ((even, odd), (odd, even)), strict=True)
    ]
    in_sample, held_out = np.mean(energies, axis=0)
    return in_sample, held_out
