"""The feature matrix X as selection sees it: blocks of rows on disk or in memory, never copied whole.

N samples, R sketch size (R' after a map), S removed directions, k columns worked on at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

# Of float64 rows. Small blocks stay in cache from their conversion to the last product; the Gram matrix, itself R × R,
# needs large ones for BLAS; and so does a thread that is to be ahead, for handing over to cost nothing.
_BLOCK_BYTES = 1 << 20
_GRAM_BLOCK_BYTES = 32 << 20
_AHEAD_BYTES = 8 << 20
_BUFFERS = 3  # one is worked on, while the next two are filled
_ALONE = 64 << 20  # matrices up to this size, in float64, are read without a thread


class Block(Protocol):
    """Rows in memory or on disk, shape (n, R), of any float type."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.floating]: ...


class FeatureMatrix:
    """X = diag(scale) Z W: rows z_i, rescaled and mapped; W = F = I − B Bᵀ removes the span of an orthonormal basis.

    Rows may be float16 or float32, memory-mapped or read when asked for; arithmetic is float64. Equal rows give equal
    products to the last bit, wherever they stand, so that ties are ties. Large matrices are read and converted by a
    thread, while what it read before is multiplied. Memory: three blocks of rows beside O(N) scalars.

    Args:
        blocks: rows in blocks of shape (n_b, R), Σ n_b = N; or a single array (N, R). How they are cut changes nothing.
        scale: (N,) factor of each row, all ones where it is left out.
        removed: B, shape (R, S) with orthonormal columns; nothing is removed where it is left out.
        mapped: W itself, shape (R, R'), instead.

    Attributes:
        passes: how often the rows were read from first to last, so far.

    Raises:
        ValueError: the shapes disagree, or W is given in both ways.

    >>> X = FeatureMatrix(np.eye(3), removed=np.eye(3)[:, :1])
    >>> X.rows([0, 1])
    array([[0., 0., 0.],
           [0., 1., 0.]])
    """

    def __init__(
        self,
        blocks: NDArray[np.floating] | Sequence[Block],
        *,
        scale: ArrayLike | None = None,
        removed: Float | None = None,
        mapped: Float | None = None,
    ) -> None:
        self._blocks: list[Block] = [blocks] if isinstance(blocks, np.ndarray) else list(blocks)
        if not self._blocks or any(len(b.shape) != 2 or b.shape[1:] != self._blocks[0].shape[1:] for b in self._blocks):
            raise ValueError("features must be one (N, R) array or blocks of it with the same R")
        self.passes = 0
        self._starts = np.cumsum([0, *(len(b) for b in self._blocks)])
        self._stored = int(self._blocks[0].shape[1])
        self.shape = (int(self._starts[-1]), self._stored if mapped is None else mapped.shape[1])
        self._scale = None if scale is None else np.asarray(scale, dtype=np.float64)
        self._removed, self._mapped = removed, mapped
        if removed is not None and mapped is not None:
            raise ValueError("rows are mapped, or have directions removed, but not both")
        for name, given in (("removed", removed), ("mapped", mapped)):
            if given is not None and (given.ndim != 2 or len(given) != self._stored):
                raise ValueError(f"{name} must be of shape ({self._stored}, ...), as features are, got {given.shape}")
        if self._scale is not None and self._scale.shape != (self.shape[0],):
            raise ValueError(f"scale has shape {self._scale.shape}, features {self.shape[0]} rows: one factor per row")

    def dot(self, directions: Float) -> Float:
        """X U, shape (N, k) for U of shape (R, k); or (N,) for a single direction. Cost: one pass, 2 N R k."""
        # X U = Z (W U), one small product instead of N; F is symmetric.
        back = self._map(directions.T) if self._mapped is None else directions.T @ self._mapped.T
        flat = np.ascontiguousarray(np.atleast_2d(back))  # (k, R)
        out = np.empty((len(flat), self.shape[0]))  # a column, which is used by itself, lies together
        for start, rows in self.blocks():
            for column, direction in enumerate(flat):
                # Row by row: a matrix product rounds a row by its place in the block.
                out[column, start : start + len(rows)] = np.vecdot(rows, direction)
        return out.T if directions.ndim == 2 else out[0]

    def weighted_sum(self, weights: Float) -> Float:
        """Xᵀ W, shape (R, k) for W of shape (N, k); or (R,) for one weight vector. Cost: one pass, 2 N R k."""
        total = np.zeros((self._stored, *weights.shape[1:]))
        for start, rows in self.blocks():
            total += rows.T @ weights[start : start + len(rows)]
        return self._map(total.T).T

    def gram(self) -> Float:
        """Xᵀ X, shape (R, R). Cost: one pass, 2 N R²."""
        total = np.zeros((self._stored, self._stored))
        for _, rows in self.blocks(_GRAM_BLOCK_BYTES):
            total += rows.T @ rows
        return self._map(self._map(total).T)

    def rows(self, indices: ArrayLike) -> Float:
        """x_i for each index, shape (len(indices), R)."""
        indices = np.asarray(indices, dtype=np.intp)
        out = np.empty((len(indices), self._stored))
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for b in np.unique(owner):
            mine = owner == b
            out[mine] = self._blocks[b][indices[mine] - self._starts[b]]
        if self._scale is not None:
            out *= self._scale[indices, None]
        return self._map(out)

    def squared_norms(self) -> Float:
        """‖x_i‖² for every sample, shape (N,). Cost: one pass, 2 N R S, or 2 N R R' where mapped."""
        out = np.empty(self.shape[0])
        for start, rows in self.blocks():
            mapped = self._map(rows)
            out[start : start + len(rows)] = np.einsum("nr,nr->n", mapped, mapped)
        return out

    def blocks(self, block_bytes: int | None = None) -> Generator[tuple[int, Float]]:
        """Where a block of rows starts, and the rows z_i, scaled; they are overwritten when more are asked for.

        Cost: one pass.
        """
        self.passes += 1
        block_bytes = block_bytes or _BLOCK_BYTES
        step = max(1, block_bytes // (8 * self._stored))
        for start, rows in self._read_all(step * max(1, _AHEAD_BYTES // block_bytes)):
            for first in range(0, len(rows), step):
                yield start + first, rows[first : first + step]

    def _read_all(self, step: int) -> Iterator[tuple[int, Float]]:
        """All rows, `step` at a time. Buffers are used again: their memory is warm already."""
        count, size = self.shape[0], self._stored
        starts = range(0, count, step)
        alone = 8 * count * size <= _ALONE
        buffers = [np.empty((min(step, count), size)) for _ in range(1 if alone else min(_BUFFERS, len(starts)))]
        if alone:
            yield from ((start, self._read(start, buffers[0])) for start in starts)
            return
        # The thread ends with the last block, or when no more are asked for.
        with ThreadPoolExecutor(1, "read-ahead") as reader:
            ahead: deque[tuple[int, Future[Float]]] = deque()
            for start, buffer in zip(starts, cycle(buffers), strict=False):
                ahead.append((start, reader.submit(self._read, start, buffer)))
                if len(ahead) == len(buffers):
                    first, rows = ahead.popleft()
                    yield first, rows.result()
            yield from ((first, rows.result()) for first, rows in ahead)

    def _read(self, start: int, buffer: Float) -> Float:
        """Rows from `start` on, as many as there are and fit, scaled, in the buffer."""
        rows = buffer[: self.shape[0] - start]
        block, filled = int(np.searchsorted(self._starts, start, side="right")) - 1, 0
        while filled < len(rows):
            first = start + filled - int(self._starts[block])
            stored = self._blocks[block][first : first + len(rows) - filled]
            np.copyto(rows[filled : filled + len(stored)], stored)
            block, filled = block + 1, filled + len(stored)
        if self._scale is not None:
            rows *= self._scale[start : start + len(rows), None]
        return rows

    def _map(self, rows: Float) -> Float:
        """z W for each row."""
        if self._mapped is not None:
            return np.asarray(rows @ self._mapped)
        return rows if self._removed is None else rows - (rows @ self._removed) @ self._removed.T
