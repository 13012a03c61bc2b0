"""The spectrum of the validation set's curvature, split into stiff and flat.

M validation samples, R sketch size, r rank, s stiff directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of the sketched empirical Fisher, H̃ = (1/M) Σ z zᵀ, and where stiff ends.

    Attributes:
        eigenvalues: λ > 0, shape (r,), descending; units of squared gradient.
        eigenvectors: shape (R, r), orthonormal columns in the same order.
        num_stiff: s, the first so many are stiff; everything else, the null space of H̃ too, is flat.
        num_validation: M.
    """

    eigenvalues: Float
    eigenvectors: Float
    num_stiff: int
    num_validation: int

    @classmethod
    def from_sketches(cls, values: ArrayLike, energy: float = 0.945) -> Spectrum:
        """The spectrum of the sketches' second moment, with the elbow at a share of its energy.

        s is the smallest count with Σ_{j≤s} λ_j ≥ energy · Σ_j λ_j, up to 1e-12 of the energy. With M < R the
        eigenpairs come from the M×M Gram matrix: λ is the same, and v_j is Zᵀ u_j, normalised.

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
        if not 0 < energy <= 1:
            raise ValueError(f"energy must be in (0, 1], got {energy}")
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
        cumulative = np.cumsum(eigenvalues)
        num_stiff = int(np.searchsorted(cumulative, energy * cumulative[-1] * (1 - 1e-12))) + 1
        return cls(eigenvalues, np.ascontiguousarray(vectors), num_stiff, num_validation)

    @property
    def stiff(self) -> Float:
        """V, shape (R, s): the stiff directions."""
        return self.eigenvectors[:, : self.num_stiff]

    def stiff_cost(self, values: ArrayLike) -> Float:
        """Curvature-weighted energy of each sample in the stiff subspace, a_i = Σ_{j≤s} λ_j (v_jᵀ z_i)².

        Args:
            values: Z, shape (N, R).

        Returns:
            a ≥ 0, shape (N,); units of gradient⁴.

        Source: arXiv:2605.31175, Algorithm 1. Cost O(N R s).
        """
        along = np.asarray(values, dtype=np.float64) @ self.stiff  # (N, s)
        return np.square(along) @ self.eigenvalues[: self.num_stiff]

    def flat(self, values: ArrayLike) -> Float:
        """F z = z − V Vᵀ z for each row, shape (N, R): what the stiff directions leave. Cost O(N R s)."""
        z = np.asarray(values, dtype=np.float64)
        return z - (z @ self.stiff) @ self.stiff.T

    def apply(self, filter: Callable[[Float], Float], vector: ArrayLike) -> Float:
        """f(H̃) v for a function f of curvature, shape (R,); the null space of H̃ is filtered with f(0).

        >>> spectrum = Spectrum.from_sketches([[2.0, 0.0]])  # λ = 4 along the first axis
        >>> spectrum.apply(lambda curvature: 1 / (curvature + 1), [1.0, 1.0])
        array([0.2, 1. ])
        """
        v = np.asarray(vector, dtype=np.float64)
        null = float(filter(np.zeros(1))[0])
        return null * v + self.eigenvectors @ ((filter(self.eigenvalues) - null) * (self.eigenvectors.T @ v))

    def __repr__(self) -> str:
        share = self.eigenvalues[: self.num_stiff].sum() / self.eigenvalues.sum()
        return (
            f"Spectrum({self.num_stiff} stiff of rank {len(self.eigenvalues)}, {share:.1%} of the energy, "
            f"from {self.num_validation} validation samples)"
        )
