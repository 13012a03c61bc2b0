"""The spectrum of the validation set's curvature, split into stiff and flat.

M validation samples, N samples of any kind, R sketch size, r rank, s stiff directions, m bands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from direct_anneal.curvature.cutoff import PAPER_SHARE, Elbow, energy_share
from direct_anneal.notebook import scree

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of the sketched curvature H̃, and where stiff ends.

    Attributes:
        eigenvalues: λ > 0, shape (r,), descending; of the empirical Fisher in units of squared gradient.
        eigenvectors: shape (R, r), orthonormal columns in the same order.
        num_stiff: s, the first so many are stiff; everything else, what has no eigenpair here too, is flat.
        num_validation: M.
    """

    eigenvalues: Float
    eigenvectors: Float
    num_stiff: int
    num_validation: int

    @classmethod
    def from_sketches(cls, values: ArrayLike, energy: float = PAPER_SHARE) -> Spectrum:
        """Return the spectrum of the sketches' second moment, H̃ = (1/M) Σ z zᵀ, with the elbow at a share of its
        energy.

        s is as `energy_share` counts; `split` has other rules. With M < R the eigenpairs come from the M×M Gram
        matrix: λ is the same, and v_j is Zᵀ u_j, normalised.

        Args:
            values: Z, shape (M, R).
            energy: in (0, 1]; the paper's elbow is 0.945.

        Raises:
            ValueError: no samples, values not finite, all zero, or energy out of range.

        Source: arXiv:2605.31175, Algorithm 1. Cost O(min(M, R)² max(M, R)).

        >>> spectrum = Spectrum.from_sketches([[3.0, 0.0], [0.0, 1.0]], energy=0.9)
        >>> spectrum.eigenvalues, spectrum.num_stiff
        (array([4.5, 0.5]), 1)
        """
        z = np.asarray(values, dtype=np.float64)
        if z.ndim != 2 or not z.size:
            raise ValueError(f"values must have shape (M, R) with at least one sample, got {z.shape}")
        if not np.all(np.isfinite(z)):
            raise ValueError("validation sketches must be finite: leave out samples whose gradient is not")
        elbow = energy_share(energy)
        num_validation, sketch_size = z.shape
        if num_validation < sketch_size:
            eigenvalues, left = np.linalg.eigh(z @ z.T / num_validation)
        else:
            eigenvalues, left = np.linalg.eigh(z.T @ z / num_validation)
        eigenvalues, left = eigenvalues[::-1], left[:, ::-1]
        if not eigenvalues[0] > 0:
            raise ValueError("all validation gradients are zero: they have no curvature to split")
        rank = int(np.sum(eigenvalues > eigenvalues[0] * max(z.shape) * np.finfo(np.float64).eps))
        eigenvalues, left = eigenvalues[:rank].copy(), left[:, :rank]
        vectors = left
        if num_validation < sketch_size:
            # QR: where λ_j is tiny beside λ₁, Zᵀ u_j is orthogonal to the others no more than roughly.
            vectors, triangle = np.linalg.qr(z.T @ left)
            vectors *= np.where(np.diag(triangle) < 0, -1.0, 1.0)
        return cls(eigenvalues, np.ascontiguousarray(vectors), elbow(eigenvalues), num_validation)

    def split(self, elbow: Elbow) -> Spectrum:
        """Return the same eigenpairs with stiff ending where the rule says.

        >>> Spectrum.from_sketches([[3.0, 0.0], [0.0, 1.0]]).split(lambda eigenvalues: 1).num_stiff
        1
        """
        return replace(self, num_stiff=elbow(self.eigenvalues))

    @property
    def stiff(self) -> Float:
        """V, shape (R, s): the stiff directions."""
        return self.eigenvectors[:, : self.num_stiff]

    def stiff_cost(self, values: ArrayLike) -> Float:
        """Return the curvature-weighted energy of each sample in the stiff subspace, a_i = Σ_{j≤s} λ_j (v_jᵀ z_i)².

        Args:
            values: Z, shape (N, R).

        Returns:
            a ≥ 0, shape (N,); units of gradient⁴.

        Source: arXiv:2605.31175, Algorithm 1. Cost O(N R s).
        """
        cost: Float = self._stiff_energies(values).sum(axis=1)
        return cost

    def bands(self, num_bands: int) -> list[slice]:
        """Return the stiff directions cut into m bands of equal energy, stiffest first.

        Band b ends with the first direction at which Σ λ reaches b/m of the stiff energy, up to 1e-12 of it; each
        band has a direction at least, so that one that holds more than its share leaves less to the others.

        Raises:
            ValueError: not 1 ≤ m ≤ s.

        Source: ours, for the paper's constraints that differ between eigen-directions.

        >>> Spectrum(np.array([5.0, 2.0, 2.0, 1.0]), np.eye(4), 4, 9).bands(2)
        [slice(0, 1, None), slice(1, 4, None)]
        """
        if not 1 <= num_bands <= self.num_stiff:
            raise ValueError(f"there must be 1 to {self.num_stiff} bands, one stiff direction each, got {num_bands}")
        cumulative = np.cumsum(self.eigenvalues[: self.num_stiff])
        bounds = [0]
        for band in range(1, num_bands + 1):
            end = int(np.searchsorted(cumulative, cumulative[-1] * band / num_bands * (1 - 1e-12))) + 1
            bounds.append(min(max(end, bounds[-1] + 1), self.num_stiff - num_bands + band))
        return [slice(*ends) for ends in pairwise(bounds)]

    def band_costs(self, values: ArrayLike, num_bands: int) -> Float:
        """Return the stiff cost of each sample in each of `bands`, A_ib = Σ_{j in b} λ_j (v_jᵀ z_i)².

        Args:
            values: Z, shape (N, R).
            num_bands: m.

        Returns:
            A ≥ 0, shape (N, m), with Σ_b A_ib = a_i up to rounding; units as in `stiff_cost`.

        Raises:
            ValueError: not 1 ≤ m ≤ s.
        """
        bands = self.bands(num_bands)
        energies = self._stiff_energies(values)
        return np.stack([energies[:, band].sum(axis=1) for band in bands], axis=1)

    def _stiff_energies(self, values: ArrayLike) -> Float:
        """Return λ_j (v_jᵀ z_i)², shape (N, s)."""
        along = np.asarray(values, dtype=np.float64) @ self.stiff
        return np.square(along) * self.eigenvalues[: self.num_stiff]

    def flat(self, values: ArrayLike) -> Float:
        """Return F z = z − V Vᵀ z for each row, shape (N, R): what the stiff directions leave. Cost O(N R s)."""
        z = np.asarray(values, dtype=np.float64)
        return z - (z @ self.stiff) @ self.stiff.T

    def apply(self, filter: Callable[[Float], Float], vectors: ArrayLike) -> Float:
        """Return f(H̃) v for a function f of curvature; the null space of H̃ is filtered with f(0).

        Args:
            vectors: v, shape (R,), or columns of them, shape (R, k).

        >>> spectrum = Spectrum.from_sketches([[2.0, 0.0]])  # λ = 4 along the first axis
        >>> spectrum.apply(lambda curvature: 1 / (curvature + 1), [1.0, 1.0])
        array([0.2, 1. ])
        """
        v = np.asarray(vectors, dtype=np.float64)
        null = float(filter(np.zeros(1))[0])
        return null * v + self.eigenvectors @ ((filter(self.eigenvalues) - null) * (v.T @ self.eigenvectors)).T

    def _repr_html_(self) -> str:
        return f"{escape(repr(self))}<br>{scree(self.eigenvalues.tolist(), self.num_stiff)}"

    def __repr__(self) -> str:
        share = self.eigenvalues[: self.num_stiff].sum() / self.eigenvalues.sum()
        return (
            f"Spectrum({self.num_stiff} stiff of rank {len(self.eigenvalues)}, {share:.1%} of the energy, "
            f"from {self.num_validation} validation samples)"
        )
