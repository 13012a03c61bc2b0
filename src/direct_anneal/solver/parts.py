"""Rows of the feature matrix, read block by block: from memory, or from disk by a thread that is ahead.

n rows of one part, R sketch size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# Of float64 rows. Small blocks stay in cache from their conversion to the last product; a thread that is to be ahead
# needs large ones, for handing over to cost nothing.
_BLOCK_BYTES = 1 << 20
_AHEAD_BYTES = 8 << 20
_BUFFERS = 3  # one is worked on, while the next two are filled
_ALONE = 64 << 20  # up to this size, without a thread


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

    def widened(self, rows: slice) -> NDArray[np.floating]:
        return self._joined(_widened(self.left, rows), _widened(self.right, rows))

    def _joined(self, *parts: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.hstack([np.float32(factor) * part for part, factor in zip(parts, self.factors, strict=True)])


def _widened(block: Block, rows: slice) -> NDArray[np.floating]:
    """Return rows of a block, as float32 where it has a quick way for that: the same numbers."""
    widened: Callable[[slice], NDArray[np.floating]] = getattr(block, "widened", block.__getitem__)
    return widened(rows)


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
        return {name: value for name, value in vars(self).items() if name != "_whole"}

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
        block_bytes = block_bytes or _BLOCK_BYTES
        step = max(1, block_bytes // (8 * self.shape[1]))
        for start, rows in self._read_all(step * max(1, _AHEAD_BYTES // block_bytes), dtype):
            for first in range(0, len(rows), step):
                block = rows[first : first + step]
                where = slice(start + first, start + first + len(block))
                yield where, block if scale is None else block * scale[where, None]

    def _read_all(self, step: int, dtype: type[np.floating]) -> Iterator[tuple[int, Float]]:
        """Return all rows, `step` at a time. Buffers are used again: their memory is warm already."""
        count, size = self.shape
        if self.kept:
            yield 0, self._whole
            return
        starts = range(0, count, step)
        alone = 8 * count * size <= _ALONE
        number = 1 if alone else min(_BUFFERS, len(starts))
        buffers: list[Float] = [np.empty((min(step, count), size), dtype) for _ in range(number)]
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

    @cached_property
    def _whole(self) -> Float:
        """All rows of a part that is kept."""
        return self._read(0, np.empty(self.shape))

    def _read(self, start: int, buffer: Float) -> Float:
        """Return rows from `start` on, as many as there are and fit, in the buffer."""
        rows = buffer[: self.shape[0] - start]
        piece, filled = int(np.searchsorted(self._starts, start, side="right")) - 1, 0
        while filled < len(rows):
            block, first, last = self.pieces[piece]
            begin = first + start + filled - int(self._starts[piece])
            end = min(last, begin + len(rows) - filled)
            target = rows[filled : filled + end - begin]
            read = slice(begin, end)
            # What is kept is read once.
            np.copyto(target, block[read] if self.kept else _widened(block, read))
            piece, filled = piece + 1, filled + len(target)
        return rows

    def some(self, positions: NDArray[np.intp]) -> Generator[tuple[slice, Float]]:
        """Return the rows z_i at ascending positions, block by block, and which of the positions those are."""
        step = max(1, _AHEAD_BYTES // (8 * self.shape[1]))
        buffer = np.empty((min(step, len(positions)), self.shape[1]))
        for start in range(0, len(positions), step):
            mine = positions[start : start + step]
            cuts = np.searchsorted(mine, self._starts)
            for (block, first, _), offset, low, high in zip(
                self.pieces, self._starts.tolist(), cuts.tolist(), cuts[1:].tolist(), strict=False
            ):
                if low < high:
                    buffer[low:high] = block[mine[low:high] - offset + first]
            yield slice(start, start + len(mine)), buffer[: len(mine)]

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Offsets of the pieces in the part."""
        return np.cumsum([0, *(last - first for _, first, last in self.pieces)])
