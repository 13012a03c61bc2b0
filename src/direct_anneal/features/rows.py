"""The rows of a shard, read whenever they are asked for: a store of any size takes no memory and no open files.

n rows of one shard's file, R sketch size.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.errors import InputError

_FLOAT16 = 2  # bytes
_ALONE = 4096  # numbers that are read in the time that it takes to read a row by itself


@dataclass(frozen=True)
class StoredRows:
    """Float16 rows of one shard, or some of them.

    Args:
        path: features-*.npy: a header, then n · R values.
        stored: (n, R).
        kept: which of the n count, ascending; all where it is left out.
    """

    path: Path
    stored: tuple[int, int]
    kept: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.stored[0] if self.kept is None else len(self.kept), self.stored[1])

    def __len__(self) -> int:
        return self.shape[0]

    def only(self, kept: NDArray[np.bool_]) -> StoredRows:
        """Select the rows where `kept`, shape (n,), is true."""
        if kept.all():
            return self
        return replace(self, kept=np.flatnonzero(kept) if self.kept is None else self.kept[kept])

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float16]:
        """Return rows by slice or position, in memory. Cost: one read, from the first to the last of them.

        Raises:
            InputError: the file is shorter than it was, or gone.
        """
        runs, picked = self._runs(rows)
        out = np.empty((_length(runs), self.stored[1]), dtype=np.float16)
        self._read(runs, out)
        return out if picked is None else out[picked]

    def widen(self, out: NDArray[np.float32], rows: slice | NDArray[np.intp]) -> None:
        """Copy rows, the same numbers as float32, to where `out` is: for what is read again and again.

        numpy converts one number of two bytes at a time, torch eight.
        """
        import torch  # which takes a second: worth it for what does not fit into memory alone

        runs, picked = self._runs(rows)
        halves = _scratch(_length(runs), self.stored[1])
        self._read(runs, halves)
        torch.from_numpy(out).copy_(torch.from_numpy(halves if picked is None else halves[picked]))

    def announce(self) -> None:
        """Have the system begin to read the file, where it can, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # whoever reads it will say so
                file = os.open(self._name, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)

    def _runs(self, rows: slice | NDArray[np.intp]) -> tuple[list[slice], NDArray[np.intp] | None]:
        """Return what to read for some rows, and which of what was read they are; None where all, in order."""
        if self.kept is not None:
            rows = self.kept[rows]
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.stored[0])
            return [slice(start, max(start, stop))], None
        if not len(rows):
            return [], None
        first, last = int(rows.min()), int(rows.max()) + 1
        if len(rows) * _ALONE < (last - first) * self.stored[1]:
            return [slice(row, row + 1) for row in rows.tolist()], None
        return [slice(first, last)], rows - first

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float16, copy=False)

    def _read(self, runs: list[slice], out: NDArray[np.float16]) -> None:
        """Read runs of stored rows, one after the other."""
        row, filled = _FLOAT16 * self.stored[1], 0
        try:
            file = os.open(self._name, os.O_RDONLY)
            try:
                for run in runs:
                    part = out[filled : filled + run.stop - run.start]
                    if part.size and os.preadv(file, [part.data], self._header + row * run.start) < part.nbytes:
                        raise ValueError(f"it ends before row {run.stop}")
                    filled += len(part)
            finally:
                os.close(file)
        except (OSError, ValueError) as error:
            raise InputError(
                f"features must stay as they were when the run began, but {self.path} cannot be read ({error}): run "
                "select again, it computes what is missing"
            ) from error

    @cached_property
    def _name(self) -> str:
        return str(self.path)

    @cached_property
    def _header(self) -> int:
        """Bytes before the first row."""
        with self.path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            return file.tell()


class _Scratch(threading.local):
    """Memory of one thread that is written to again and again: fresh one costs more than what is read into it."""

    halves = np.empty(0, dtype=np.float16)


_kept = _Scratch()


def _scratch(count: int, size: int) -> NDArray[np.float16]:
    if len(_kept.halves) < count * size:
        _kept.halves = np.empty(count * size, dtype=np.float16)
    return _kept.halves[: count * size].reshape(count, size)


def _length(runs: list[slice]) -> int:
    return sum(run.stop - run.start for run in runs)
