"""The rows of a shard, read whenever they are asked for: a store of any size takes no memory and no open files.

n rows of one shard's file, R sketch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.errors import InputError

_FLOAT16 = 2  # bytes


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
        positions = np.arange(len(self))[rows] if self.kept is None else self.kept[rows]
        if not len(positions):
            return np.empty((0, self.stored[1]), dtype=np.float16)
        first = int(positions.min())
        read = self._read(first, int(positions.max()) + 1)
        return read if isinstance(rows, slice) and len(read) == len(positions) else read[positions - first]

    def widened(self, rows: slice) -> NDArray[np.float32]:
        """Return rows by slice, the same numbers as float32: for what is converted again and again.

        numpy converts one number of two bytes at a time, torch eight.
        """
        import torch  # which takes a second: worth it for what does not fit into memory alone

        return torch.from_numpy(self[rows]).float().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float16, copy=False)

    def _read(self, start: int, stop: int) -> NDArray[np.float16]:
        size = self.stored[1]
        try:
            offset = self._header + _FLOAT16 * start * size
            return np.fromfile(self.path, np.float16, (stop - start) * size, offset=offset).reshape(stop - start, size)
        except (OSError, ValueError) as error:
            raise InputError(
                f"features must stay as they were when the run began, but {self.path} cannot be read ({error}): run "
                "select again, it computes what is missing"
            ) from error

    @cached_property
    def _header(self) -> int:
        """Bytes before the first row."""
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        assert isinstance(mapped, np.memmap)
        return int(mapped.offset)
