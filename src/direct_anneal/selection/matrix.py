"""The feature matrix X as selection sees it: blocks of rows on disk or in memory, never copied whole.

N samples, R sketch size, S removed directions, k columns worked on at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

# Of float64 rows. Small blocks stay in cache from their conversion to the last product; the Gram matrix, itself R × R,
# needs large ones for BLAS.
_BLOCK_BYTES = 1 << 20
_GRAM_BLOCK_BYTES = 64 << 20


class FeatureMatrix:
    """X = F diag(scale) Z: rows z_i, rescaled, with the span of an orthonormal basis removed (F = I − B Bᵀ).

    Rows may be float16 or float32 and memory-mapped; arithmetic is float64. Equal rows give equal products to the
    last bit, wherever they stand, so that ties are ties. Memory: one block of rows beside O(N) scalars.

    Args:
        blocks: arrays of shape (n_b, R), Σ n_b = N; or a single array (N, R).
        scale: (N,) factor of each row, all ones where it is left out.
        removed: B, shape (R, S) with orthonormal columns; nothing is removed where it is left out.

    Attributes:
        passes: how often the rows were read from first to last, so far.

    Raises:
        ValueError: the shapes disagree.

    >>> X = FeatureMatrix(np.eye(3), removed=np.eye(3)[:, :1])
    >>> X.rows([0, 1])
    array([[0., 0., 0.],
           [0., 1., 0.]])
    """

    def __init__(
        self,
        blocks: NDArray[np.floating] | Sequence[NDArray[np.floating]],
        *,
        scale: ArrayLike | None = None,
        removed: Float | None = None,
    ) -> None:
        self._blocks = [blocks] if isinstance(blocks, np.ndarray) else list(blocks)
        if not self._blocks or any(b.ndim != 2 or b.shape[1] != self._blocks[0].shape[1] for b in self._blocks):
            raise ValueError("features must be one (N, R) array or blocks of it with the same R")
        self.passes = 0
        self._starts = np.cumsum([0, *(len(b) for b in self._blocks)])
        self.shape = (int(self._starts[-1]), int(self._blocks[0].shape[1]))
        self._scale = None if scale is None else np.asarray(scale, dtype=np.float64)
        self._removed = removed
        if removed is not None and removed.ndim != 2:
            raise ValueError(f"removed must have shape (R, S), got {removed.shape}")
        if self._scale is not None and self._scale.shape != (self.shape[0],):
            raise ValueError(f"scale has shape {self._scale.shape}, features {self.shape[0]} rows: one factor per row")
        if removed is not None and removed.shape[0] != self.shape[1]:
            raise ValueError(f"removed directions have {removed.shape[0]} entries, features {self.shape[1]}")

    def dot(self, directions: Float) -> Float:
        """X U, shape (N, k) for U of shape (R, k); or (N,) for a single direction. Cost: one pass, 2 N R k."""
        # F is symmetric: X U = Z (F U), one small product instead of N.
        flat = np.ascontiguousarray(np.atleast_2d(self._flatten(directions.T)))  # (k, R)
        out = np.empty((len(flat), self.shape[0]))  # a column, which is used by itself, lies together
        for start, rows in self._scaled():
            for column, direction in enumerate(flat):
                # Row by row: a matrix product rounds a row by its place in the block.
                out[column, start : start + len(rows)] = np.vecdot(rows, direction)
        return out.T if directions.ndim == 2 else out[0]

    def weighted_sum(self, weights: Float) -> Float:
        """Xᵀ W, shape (R, k) for W of shape (N, k); or (R,) for one weight vector. Cost: one pass, 2 N R k."""
        total = np.zeros((self.shape[1], *weights.shape[1:]))
        for start, rows in self._scaled():
            total += rows.T @ weights[start : start + len(rows)]
        return self._flatten(total.T).T

    def gram(self) -> Float:
        """Xᵀ X, shape (R, R). Cost: one pass, 2 N R²."""
        total = np.zeros((self.shape[1], self.shape[1]))
        for _, rows in self._scaled(_GRAM_BLOCK_BYTES):
            total += rows.T @ rows
        return self._flatten(self._flatten(total).T)

    def rows(self, indices: ArrayLike) -> Float:
        """x_i for each index, shape (len(indices), R)."""
        indices = np.asarray(indices, dtype=np.intp)
        out = np.empty((len(indices), self.shape[1]))
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for b in np.unique(owner):
            mine = owner == b
            out[mine] = self._blocks[b][indices[mine] - self._starts[b]]
        if self._scale is not None:
            out *= self._scale[indices, None]
        return self._flatten(out)

    def squared_norms(self) -> Float:
        """‖x_i‖² for every sample, shape (N,). Cost: one pass, 2 N R S."""
        out = np.empty(self.shape[0])
        for start, rows in self._scaled():
            flat = self._flatten(rows)
            out[start : start + len(rows)] = np.einsum("nr,nr->n", flat, flat)
        return out

    def _scaled(self, block_bytes: int | None = None) -> Iterator[tuple[int, Float]]:
        """Where a block of rows starts, and the rows, which the next one overwrites: memory that is warm already."""
        self.passes += 1
        step = max(1, (block_bytes or _BLOCK_BYTES) // (8 * self.shape[1]))
        buffer = np.empty((min(step, max(map(len, self._blocks))), self.shape[1]))
        for start, block in zip(self._starts[:-1], self._blocks, strict=True):
            for first in range(0, len(block), step):
                stored = block[first : first + step]
                rows = buffer[: len(stored)]
                np.copyto(rows, stored)
                if self._scale is not None:
                    rows *= self._scale[start + first : start + first + len(rows), None]
                yield int(start) + first, rows

    def _flatten(self, rows: Float) -> Float:
        return rows if self._removed is None else rows - (rows @ self._removed) @ self._removed.T
