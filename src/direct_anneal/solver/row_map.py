"""The map W that all rows of a feature matrix go through.

R sketch size, R' after the map, S removed directions.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

Float = NDArray[np.float64]

MARGIN = 1 + 1e-4  # of bounds, beyond what rounding makes of them
_SMALL = 64  # rows or columns of a matrix whose norm is found from all of it

# k steps of Lanczos from a random start fall short of the largest of n eigenvalues by a share e or more with a
# probability of at most 1.648 √n exp(−√e (2k − 1)) (Kuczyński and Woźniakowski, 1992).
_STEPS = 60
_CHANCE = 1e-10


class RowMap:
    """z W for each row.

    Args:
        removed: B, shape (R, S) with orthonormal columns: W = I − B Bᵀ.
        mapped: W itself, shape (R, R'), instead. Neither: W = I.
    """

    def __init__(self, removed: NDArray[np.floating] | None, mapped: NDArray[np.floating] | None) -> None:
        # Together in memory, since that is how they would arrive elsewhere.
        self._removed, self._mapped = (None if m is None else np.ascontiguousarray(m) for m in (removed, mapped))

    def __call__(self, rows: Float) -> Float:
        if self._mapped is not None:
            return np.asarray(rows @ self._mapped)
        return rows if self._removed is None else np.asarray(rows - (rows @ self._removed) @ self._removed.T)

    @property
    def mixes(self) -> bool:
        """True if W is any matrix, and so costs as much as rows do."""
        return self._mapped is not None

    @cached_property
    def norm(self) -> float:
        """A bound on ‖W‖ from above, a few percent beyond it at most."""
        if self._mapped is None:
            return 1.0
        matrix = self._mapped
        if min(matrix.shape) <= _SMALL or not matrix.any():
            return float(np.linalg.norm(matrix, 2)) * MARGIN
        start = np.random.default_rng(0).normal(size=matrix.shape[1])
        square = LinearOperator((len(start), len(start)), matvec=lambda v: matrix.T @ (matrix @ v), dtype=np.float64)
        largest = eigsh(square, 1, which="LA", v0=start, ncv=_STEPS, tol=1e-2, return_eigenvectors=False)[0]
        short = (np.log(1.648 * np.sqrt(len(start)) / _CHANCE) / (2 * _STEPS - 1)) ** 2
        return float(np.sqrt(largest / (1 - short)))

    def trace(self, gram: Float) -> float:
        """Return the trace of Wᵀ G W."""
        matrix, mapped = (self._removed, self._mapped)
        if mapped is not None:
            return float(np.vdot(gram @ mapped, mapped))
        return float(np.trace(gram)) - (0.0 if matrix is None else float(np.vdot(gram @ matrix, matrix)))

    def single(self) -> RowMap:
        """Return the same in float32."""
        return RowMap(*(None if m is None else m.astype(np.float32) for m in (self._removed, self._mapped)))

    def transposed(self, rows: Float) -> Float:
        """Return u Wᵀ for each; F is symmetric."""
        return self(rows) if self._mapped is None else np.asarray(rows @ self._mapped.T)
