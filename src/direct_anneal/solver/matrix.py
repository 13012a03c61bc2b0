"""The feature matrix X as selection sees it: blocks of rows on disk or in memory, never copied whole.

N samples, n rows of one part, R sketch size (R' after a map), S removed directions, k columns worked on at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from direct_anneal.solver.parts import Block, Part
from direct_anneal.solver.row_map import MARGIN, RowMap

Float = NDArray[np.float64]
Item = TypeVar("Item")
Result = TypeVar("Result")

_GRAM_BLOCK_BYTES = 32 << 20  # of float64 rows: itself R × R, it needs large blocks for BLAS
_KEPT = 256 << 20  # a matrix up to this size, in float64, is read and converted once

# What is summed by itself, and may be summed elsewhere. Sums are added up part by part: that they are the same wherever
# parts are summed hangs on these numbers alone. A part's sum is R numbers, its Gram matrix R²: of those there are few.
_PART_BYTES = 512 << 20
_GRAMS = 64

_HELD_BLOCK = 1 << 20  # numbers of rows that are mapped at once
_WIDE = 256  # numbers of a row: with fewer there is nothing to save


class Map(Protocol):
    """The protocol of the built-in `map`: results in the order of items, computed lazily.

    One that runs elsewhere needs functions, items and results that can be pickled, and places that can be read there.
    """

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


@dataclass
class _Shared:
    """Figures of the stored rows z, whatever their map.

    Attributes:
        lengths: upper bounds on ‖z‖, shape (N,).
        gram: factors of the rows, and their Gram matrix, shape (R, R).
    """

    lengths: Float | None = None
    gram: tuple[Float | None, Float | None] = (None, None)


class FeatureMatrix:
    """X = diag(scale) Z W: rows z_i, rescaled and mapped; W = F = I − B Bᵀ removes the span of an orthonormal basis.

    Rows may be float16 or float32, memory-mapped or read when asked for; arithmetic is float64, or float32 where
    a rough product of rows that are not kept in memory is asked for. Equal rows give equal products to the last bit,
    wherever they stand, so that ties are ties. Rows are converted and multiplied while they are in a core's cache; the
    system is told before what will be read. Memory: a block of rows beside O(N) scalars.

    Args:
        blocks: rows in blocks of shape (n_b, R), Σ n_b = N; or a single array (N, R). How they are cut changes nothing.
        scale: (N,) factor of each row, all ones where it is left out.
        removed: B, shape (R, S) with orthonormal columns; nothing is removed where it is left out.
        mapped: W itself, shape (R, R'), instead.
        mapper: carries products out, part by part: here, or wherever the blocks can be read. Changes nothing else.

    Attributes:
        passes: how often the rows were read from first to last, so far.
        shape: (N, R), or (N, R').
        stored_size: R.

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
        mapper: Map = map,
    ) -> None:
        self._blocks: list[Block] = [blocks] if isinstance(blocks, np.ndarray) else list(blocks)
        if not self._blocks or any(len(b.shape) != 2 or b.shape[1:] != self._blocks[0].shape[1:] for b in self._blocks):
            raise ValueError("features must be one (N, R) array or blocks of it with the same R")
        self.passes = 0
        self._starts = np.cumsum([0, *(len(b) for b in self._blocks)])
        self.stored_size = int(self._blocks[0].shape[1])
        self.shape = (int(self._starts[-1]), self.stored_size if mapped is None else mapped.shape[1])
        self._scale = None if scale is None else np.asarray(scale, dtype=np.float64)
        if removed is not None and mapped is not None:
            raise ValueError("rows are mapped, or have directions removed, but not both")
        for name, given in (("removed", removed), ("mapped", mapped)):
            if given is not None and (given.ndim != 2 or len(given) != self.stored_size):
                raise ValueError(
                    f"{name} must be of shape ({self.stored_size}, ...), as features are, got {given.shape}"
                )
        if self._scale is not None and self._scale.shape != (self.shape[0],):
            raise ValueError(f"scale has shape {self._scale.shape}, features {self.shape[0]} rows: one factor per row")
        self._map = RowMap(removed, mapped)
        self._mapper = mapper
        count, rows = self.shape[0], max(1, _PART_BYTES // (8 * self.stored_size))
        self._places = [slice(first, min(first + rows, count)) for first in range(0, max(1, count), rows)]
        self._parts = [self._part(place) for place in self._places]
        self._shared = _Shared()

    def like(
        self, *, scale: ArrayLike | None = None, removed: Float | None = None, mapped: Float | None = None
    ) -> FeatureMatrix:
        """Return the same stored rows z_i under another scale and map; what is kept of them in memory is shared."""
        other = FeatureMatrix(self._blocks, scale=scale, removed=removed, mapped=mapped, mapper=self._mapper)
        other._parts, other._shared = self._parts, self._shared
        return other

    def dot(self, directions: Float, *, rough: bool = False) -> Float:
        """Return X U, shape (N, k) for U of shape (R, k); or (N,) for a single direction. Cost: one pass, 2 N R k.

        Args:
            rough: good enough to find candidates by, up to float32's rounding, in half the time.
        """
        # X U = Z (W U), one small product instead of N.
        flat = np.ascontiguousarray(np.atleast_2d(self._map.transposed(directions.T)))  # (k, R)
        out = np.empty((len(flat), self.shape[0]))  # a column, which is used by itself, lies together
        for place, found in zip(self._places, self._pass(partial(_dot, flat, rough), self._parts), strict=True):
            out[:, place] = found
        if self._scale is not None:
            out *= self._scale
        return out.T if directions.ndim == 2 else out[0]

    def weighted_sum(self, weights: Float) -> Float:
        """Return Xᵀ W, shape (R, k) for W of shape (N, k); or (R,) for one weight vector. Cost: one pass, 2 N R k."""
        total = np.zeros((self.stored_size, *weights.shape[1:]))
        items = (
            (part, weights[place] if self._scale is None else (weights[place].T * self._scale[place]).T)
            for part, place in zip(self._parts, self._places, strict=True)
        )
        for found in self._pass(_weighted_sum, items):
            total += found
        return self._map(total.T).T

    def gram(self) -> Float:
        """Return Xᵀ X, shape (R, R). Cost: one pass, 2 N R²."""
        together = -(-len(self._parts) // _GRAMS)
        runs = (slice(first, first + together) for first in range(0, len(self._parts), together))
        total = np.zeros((self.stored_size, self.stored_size))
        for found in self._pass(_gram, ((self._parts[run], self._factors(run)) for run in runs)):
            total += found
        self._shared.gram = (self._scale, total)
        return self._map(self._map(total).T)

    def mean_squared_norm(self) -> float:
        """Return the mean of ‖x_i‖². Cost: R² R' if the last Gram matrix was of rows that differ by W alone; otherwise
        as of `squared_norms`.
        """
        scale, gram = self._shared.gram
        if gram is None or scale is not self._scale or self.shape[0] < self.stored_size:
            return float(self.squared_norms().mean())
        return self._map.trace(gram) / self.shape[0]

    def rows(self, indices: ArrayLike) -> Float:
        """Return x_i for each index, shape (len(indices), R); read here."""
        indices = np.asarray(indices, dtype=np.intp)
        out = self._parts[0].at(indices) if len(self._parts) == 1 and self._parts[0].in_memory else self._read(indices)
        if self._scale is not None:
            out *= self._scale[indices, None]
        return self._map(out)

    @property
    def is_wide(self) -> bool:
        """True if rows are in memory, or will be, and products of `coordinates` take at most half the work."""
        count, size = self.shape
        work = self.stored_size * (count + size * self._map.mixes)
        return self._parts[0].kept and size >= _WIDE and 2 * count * min(count, size) <= work

    def coordinates(self) -> tuple[Float, Float]:
        """Return C, shape (N, n), and Q, shape (R', n) with orthonormal columns, with X = C Qᵀ: products among rows are
        the same. Equal rows have equal coordinates. Cost: 2 N R R' where mapped, and 2 N² R'.
        """
        rows, places = np.unique(self._read(np.arange(self.shape[0])), axis=0, return_inverse=True)
        basis, triangle = np.linalg.qr(self._map(rows).T)
        found = triangle.T[places.ravel()]
        return (found if self._scale is None else found * self._scale[:, None]), basis

    def _read(self, indices: NDArray[np.intp]) -> Float:
        """Return z_i for each index, from the blocks."""
        out = np.empty((len(indices), self.stored_size))
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for b in np.unique(owner):
            mine = owner == b
            out[mine] = self._blocks[b][indices[mine] - self._starts[b]]
        return out

    def squared_norms(self, *, rough: bool = False) -> Float:
        """Return ‖x_i‖² for every sample, shape (N,); not to be written to. Cost: one pass, 2 N R S, or 2 N R R' where
        mapped; the first time.

        Args:
            rough: as of `dot`.
        """
        if rough and "_squared_norms" not in vars(self):
            return self._rough_squared_norms
        return self._squared_norms

    @cached_property
    def _squared_norms(self) -> Float:
        return self._norms(rough=False)

    @cached_property
    def _rough_squared_norms(self) -> Float:
        return self._norms(rough=True)

    def _norms(self, *, rough: bool) -> Float:
        out = np.concatenate(list(self._pass(partial(_squared_norms, self._map, rough), self._parts)))
        return out if self._scale is None else out * np.square(self._scale)

    def longest(self) -> Float:
        """Return upper bounds on ‖x_i‖, ‖W‖ ‖z_i‖, shape (N,): not finite where a row is not. Cost: one pass, the
        first time for all that are alike.
        """
        if self._shared.lengths is None:
            self._shared.lengths = np.concatenate(list(self._pass(_lengths, self._parts)))
        bounds = self._map.norm * self._shared.lengths
        return bounds if self._scale is None else bounds * np.abs(self._scale)

    def held(self, positions: NDArray[np.intp]) -> Held:
        """Return rows at ascending positions in memory, for rough products; read here."""
        dtype = np.float64 if self._parts[0].kept else np.float32
        rows = np.empty((len(positions), self.stored_size), dtype)
        cuts = np.searchsorted(positions, [place.start for place in self._places] + [self.shape[0]]).tolist()
        for part, place, low, high in zip(self._parts, self._places, cuts, cuts[1:], strict=False):
            for where, some in part.some(positions[low:high] - place.start, dtype):
                rows[low + where.start : low + where.stop] = some
        return Held(positions, rows, None if self._scale is None else self._scale[positions], self._map)

    def of_rows(self, function: Callable[[Float], Float], block_bytes: int) -> Float:
        """Return f(z_i) of every row, scaled but not mapped, shape (N, m), by a function from rows (n, R) to (n, m).

        Args:
            block_bytes: about how much of the rows, in float64, the function is given at a time.

        Cost: one pass.
        """
        work = partial(_of_rows, function, block_bytes)
        parts = range(len(self._parts))
        items = ((self._parts[one], *self._factors(slice(one, one + 1))) for one in parts)
        return np.concatenate(list(self._pass(work, items)))

    def _pass(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        self.passes += 1
        return self._mapper(function, items)

    def _factors(self, parts: slice) -> list[Float | None]:
        """Return the factors of the rows of some parts; None where rows have none."""
        return [None if self._scale is None else self._scale[place] for place in self._places[parts]]

    def _part(self, place: slice) -> Part:
        begin, end = np.searchsorted(self._starts, [place.start, place.stop], side="right") - 1
        pieces = [
            (block, max(place.start - start, 0), min(place.stop - start, len(block)))
            for block, start in zip(self._blocks[begin : end + 1], self._starts[begin:].tolist(), strict=False)
        ]
        kept = 8 * self.shape[0] * self.stored_size <= _KEPT
        pieces = [piece for piece in pieces if piece[1] < piece[2]]
        return Part((place.stop - place.start, self.stored_size), tuple(pieces), kept)


class Held:
    """Some rows of a matrix in memory, for rough products: the same numbers as of all its rows.

    Attributes:
        positions: shape (n,), ascending.
    """

    def __init__(self, positions: NDArray[np.intp], rows: Any, scale: Float | None, row_map: RowMap) -> None:
        self.positions, self._rows, self._scale, self._map = positions, rows, scale, row_map

    def dot(self, direction: Float) -> Float:
        """Return X u, shape (n,), for u of shape (R,)."""
        flat = self._map.transposed(direction[None])[0].astype(self._rows.dtype, copy=False)
        out: Float = np.vecdot(self._rows, np.ascontiguousarray(flat)).astype(np.float64)
        return out if self._scale is None else out * self._scale

    def squared_norms(self) -> Float:
        """Return ‖x_i‖², shape (n,)."""
        row_map = self._map.single() if self._rows.dtype == np.float32 else self._map
        out, step = np.empty(len(self._rows)), max(1, _HELD_BLOCK // self._rows.shape[1])
        for first in range(0, len(out), step):
            mapped = row_map(self._rows[first : first + step])
            out[first : first + step] = np.einsum("nr,nr->n", mapped, mapped)
        return out if self._scale is None else out * np.square(self._scale)


# What is computed of one part, by whoever has it.


def _dot(directions: Float, rough: bool, part: Part) -> Float:
    """Return (k, n), for directions (k, R)."""
    out = np.empty((len(directions), part.shape[0]))
    dtype = np.float32 if rough and not part.kept else np.float64
    directions = directions.astype(dtype, copy=False)
    for where, rows in part.blocks(dtype=dtype):
        for column, direction in enumerate(directions):
            # Row by row: a matrix product rounds a row by its place in the block.
            out[column, where] = np.vecdot(rows, direction)
    return out


def _weighted_sum(item: tuple[Part, Float]) -> Float:
    part, weights = item
    weights = np.ascontiguousarray(weights)
    total = np.zeros((part.shape[1], *weights.shape[1:]))
    heavy: NDArray[np.bool_] = np.any(weights.reshape(len(weights), -1) != 0, axis=1)
    if part.kept or 2 * np.count_nonzero(heavy) > len(heavy):
        for where, rows in part.blocks():
            total += rows.T @ weights[where]
        return total
    # What has no weight need not be converted.
    positions = np.flatnonzero(heavy)
    for where, rows in part.some(positions):
        total += rows.T @ weights[positions[where]]
    return total


def _gram(run: tuple[Sequence[Part], Sequence[Float | None]]) -> Float:
    size = run[0][0].shape[1]
    total = np.zeros((size, size))
    for part, scale in zip(*run, strict=True):
        for _, rows in part.blocks(scale, _GRAM_BLOCK_BYTES):
            total += rows.T @ rows
    return total


def _squared_norms(row_map: RowMap, rough: bool, part: Part) -> Float:
    out = np.empty(part.shape[0])
    rough = rough and not part.kept
    row_map = row_map.single() if rough else row_map
    for where, rows in part.blocks(dtype=np.float32 if rough else np.float64):
        mapped = row_map(rows)
        out[where] = np.einsum("nr,nr->n", mapped, mapped)
    return out


def _lengths(part: Part) -> Float:
    """Return upper bounds on ‖z‖, (n,)."""
    out = np.empty(part.shape[0])
    for where, rows in part.blocks(dtype=np.float32):
        out[where] = np.vecdot(rows, rows)
    return np.sqrt(out) * MARGIN


def _of_rows(function: Callable[[Float], Float], block_bytes: int, item: tuple[Part, Float | None]) -> Float:
    part, scale = item
    return np.concatenate([function(rows) for _, rows in part.blocks(scale, block_bytes)])
