"""Curvature estimators: the spectrum of the validation loss, and one of each half for holding out.

M validation samples, R sketch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.names import CurvatureName as CurvatureName
from direct_anneal.curvature.cutoff import Elbow
from direct_anneal.curvature.spectrum import Spectrum

FEWEST_TO_HALVE = 4


class CurvatureEstimator(Protocol):
    """Estimates the curvature of the mean loss over any part of the validation samples."""

    def spectrum(self, samples: NDArray[np.intp]) -> Spectrum:
        """Estimate the spectrum of these samples; the cutoff is the paper's share of the energy.

        Raises:
            ValueError: they have no curvature to split.
        """


@dataclass(frozen=True)
class SecondMoment:
    """H̃ = (1/M) Σ z zᵀ. Of the samples' own gradients it is the paper's, the empirical Fisher.

    Attributes:
        values: Z, shape (M, R).
    """

    values: NDArray[np.float64]

    def spectrum(self, samples: NDArray[np.intp]) -> Spectrum:
        return Spectrum.from_sketches(self.values[samples])


@dataclass(frozen=True)
class Estimate:
    """The spectrum of all validation samples, and those of their halves.

    Attributes:
        whole: of all M.
        halves: of the samples at even and at odd positions; None where there are fewer than four.
    """

    whole: Spectrum
    halves: tuple[Spectrum, Spectrum] | None

    def split(self, elbow: Elbow) -> Estimate:
        """Return the same with stiff ending where the rule says, in each spectrum by itself."""
        even_odd = self.halves and (self.halves[0].split(elbow), self.halves[1].split(elbow))
        return Estimate(self.whole.split(elbow), even_odd)


def estimate(estimator: CurvatureEstimator, num_samples: int) -> Estimate:
    """Return all spectra that an estimator has to give. Cost: twice that of its spectrum of M samples.

    Raises:
        ValueError: the samples, or a half of them, have no curvature to split.
    """
    everything = np.arange(num_samples)
    whole = estimator.spectrum(everything)
    if num_samples < FEWEST_TO_HALVE:
        return Estimate(whole, None)
    return Estimate(whole, (estimator.spectrum(everything[0::2]), estimator.spectrum(everything[1::2])))
