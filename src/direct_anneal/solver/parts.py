"""Rows of the feature matrix, read block by block from memory or from disk.

n rows of one part, R sketch size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_BLOCK_BYTES = 1 << 20  # of float64 rows, what is summed at once where there are many
_SOME_BYTES = 8 << 20  # the same where there are few
_CACHED = 1 << 17  # numbers read and converted at once: with what they are converted to, a core's cache holds them
_AHEAD = 1 << 22  # numbers: so far ahead the system is told what will be read


class Block(Protocol):
    """Rows in memory or on disk, shape (n, R), of any float type."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class Joined:
    """Rows of two blocks side by side, each times a factor: of (n, R) and (n, L) float32 rows of shape (n, R + L).

    Args:
        left, right: of n rows each.
        factors: of the left, and of the right.
    """

    left: Block
    right: Block
    factors: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.left), self.left.shape[1] + self.right.shape[1])

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, rows: Any) -> NDArray[np.floating]:
        return self._joined(self.left[rows], self.right[rows])

    def widen(self, out: NDArray[np.float32], rows: Any) -> None:
        both = np.split(out, [self.left.shape[1]], axis=1)
        for block, columns, factor in zip((self.left, self.right), both, self.factors, strict=True):
            _fill(block, columns, rows, columns)
            columns *= np.float32(factor)

    def announce(self) -> None:
        _announce(self.left)
        _announce(self.right)

    def _joined(self, *parts: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.hstack([np.float32(factor) * part for part, factor in zip(parts, self.factors, strict=True)])


def _fill(block: Block, out: NDArray[Any], rows: Any, single: NDArray[np.float32]) -> None:
    """Copy rows of a block, quickly where it widens to float32 by itself: the same numbers.

    Args:
        single: memory to do that in, for as many rows at least. Used again and again it is warm.
    """
    quick: Callable[[NDArray[Any], Any], None] | None = getattr(block, "widen", None)
    if quick is None:
        np.copyto(out, block[rows], casting="same_kind")
    elif out.dtype == np.float32:
        quick(out, rows)
    else:
        quick(single[: len(out)], rows)
        np.copyto(out, single[: len(out)])


def _announce(block: Block) -> None:
    """Tell a block that it will be read soon, where that helps it."""
    tell: Callable[[], None] | None = getattr(block, "announce", None)
    if tell is not None:
        tell()


@dataclass(frozen=True)
class Part:
    """A run of rows, of one block or several.

    Attributes:
        shape: (n, R).
        pieces: blocks, and the first and last + 1 of the rows that are meant.
        kept: its rows stay in memory once they were read.
    """

    shape: tuple[int, int]
    pieces: tuple[tuple[Block, int, int], ...]
    kept: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the rows that were read here."""
        return {name: value for name, value in vars(self).items() if name not in ("_whole", "_starts")}

    @property
    def in_memory(self) -> bool:
        """True if all rows are there already."""
        return "_whole" in vars(self)

    def at(self, rows: NDArray[np.intp]) -> Float:
        """Copy rows of a part that is kept."""
        return self._whole[rows]

    def blocks(
        self, scale: Float | None = None, block_bytes: int | None = None, dtype: type[np.floating] = np.float64
    ) -> Generator[tuple[slice, Float]]:
        """Return the rows z_i of the part, times a factor each, block by block, and their positions in it.

        A block is not to be written to, and is overwritten when the next is asked for.

        Args:
            scale: (n,).
            block_bytes: about the size of a block.
            dtype: of the rows, where they are not kept.
        """
        count, size = self.shape
        step = max(1, (block_bytes or _BLOCK_BYTES) // (8 * size))
        if self.kept:
            for start in range(0, count, step):
                where = slice(start, min(start + step, count))
                yield where, self._whole[where] if scale is None else self._whole[where] * scale[where, None]
            return
        buffer = np.empty((min(step, count), size), dtype)
        single, announced = np.empty((min(max(1, _CACHED // size), count), size), np.float32), 0
        for start in range(0, count, step):
            where = slice(start, min(start + step, count))
            announced = self._announce(announced, where.stop + _AHEAD // size)
            rows = buffer[: where.stop - start]
            self._read(where, rows, single)
            yield where, rows if scale is None else rows * scale[where, None]

    @cached_property
    def _whole(self) -> Float:
        """All rows of a part that is kept."""
        out = np.empty(self.shape)
        for block, rows, where in self._pieces_of(slice(0, len(out))):
            out[where] = block[rows]  # once, for which nothing quicker need be loaded
        return out

    def _read(self, where: slice, out: NDArray[Any], single: NDArray[np.float32]) -> None:
        """Copy rows, as many at a time as `single` holds."""
        for first in range(where.start, where.stop, len(single)):
            for block, rows, place in self._pieces_of(slice(first, min(first + len(single), where.stop))):
                _fill(block, out[place.start - where.start : place.stop - where.start], rows, single)

    def _pieces_of(self, where: slice) -> Iterator[tuple[Block, slice, slice]]:
        """List the blocks that some rows lie in, their rows there, and in the part."""
        at, start = bisect_right(self._starts, where.start) - 1, where.start
        while start < where.stop:
            (block, first, _), offset = self.pieces[at], self._starts[at]
            stop = min(where.stop, self._starts[at + 1])
            yield block, slice(first + start - offset, first + stop - offset), slice(start, stop)
            at, start = at + 1, stop

    def _announce(self, first: int, stop: int) -> int:
        """Announce pieces from the first on that begin before a row; return the next one."""
        last = min(bisect_left(self._starts, stop), len(self.pieces))
        for block, *_ in self.pieces[first:last]:
            _announce(block)
        return last

    def some(
        self, positions: NDArray[np.intp], dtype: type[np.floating] = np.float64
    ) -> Generator[tuple[slice, Float]]:
        """Return the rows z_i at ascending positions, block by block, and which of the positions those are.

        Args:
            dtype: as of `blocks`.
        """
        step = max(1, _SOME_BYTES // (8 * self.shape[1]))
        shape = (min(step, len(positions)), self.shape[1])
        buffer, announced = np.empty(shape, dtype), 0
        single = buffer if dtype == np.float32 else np.empty(shape, np.float32)
        for start in range(0, len(positions), step):
            mine = positions[start : start + step]
            if self.kept:
                yield slice(start, start + len(mine)), self._whole[mine]
                continue
            announced = self._announce(announced, int(mine[-1]) + _AHEAD // self.shape[1])
            cuts = np.searchsorted(mine, self._starts)
            for (block, first, _), offset, low, high in zip(
                self.pieces, self._starts, cuts.tolist(), cuts[1:].tolist(), strict=False
            ):
                if low < high:
                    _fill(block, buffer[low:high], mine[low:high] - offset + first, single)
            yield slice(start, start + len(mine)), buffer[: len(mine)]

    @cached_property
    def _starts(self) -> list[int]:
        """Offsets of the pieces in the part, and its end."""
        return list(accumulate((last - first for _, first, last in self.pieces), initial=0))
