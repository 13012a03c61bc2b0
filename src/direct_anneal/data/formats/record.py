"""The contract of a format of documents, for readers and writers alike.

Adding a format: a module beside this one with a subclass of `Format`, and a line in `direct_anneal.data.formats`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from direct_anneal.data.formats.layout import TokenLayout


@dataclass(frozen=True)
class BadRecord:
    """An unusable record: kind is "bad-line", or "truncated" for the end of a damaged file."""

    reason: str
    kind: str = "bad-line"


Record = Mapping[str, Any] | BadRecord


@dataclass(frozen=True)
class Choice:
    """The rows to copy from one source.

    Attributes:
        path: the source's.
        rows: (K_s,) int64, sorted.
        tokens: of the chosen documents, (T,) int64 each; read as they are asked for.
        check_unchanged: raises InputError if the source is another than when its rows were chosen.
    """

    path: Path
    rows: np.ndarray
    tokens: Iterable[np.ndarray]
    check_unchanged: Callable[[], object]


class Format(ABC):
    """One way in which documents lie in files: how they are read, counted and written.

    Attributes:
        name: of the format, unique.
        suffixes: of its files; the first is that of the output.
        tokenised: whether its records are tokens alone, in a layout that the files need not say.
    """

    name: str
    suffixes: tuple[str, ...]
    tokenised: ClassVar[bool] = False

    @property
    def output(self) -> str:
        """Name of the file, or directory, of chosen documents."""
        return f"selected{self.suffixes[0]}"

    def recognises(self, path: Path) -> bool:
        """Tell whether a file with such a suffix is one of documents: only then is it taken out of a directory."""
        return True

    def files(self, path: Path) -> list[Path]:
        """List every file that is read for this one."""
        return [path]

    @abstractmethod
    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        """Yield (row, record), rows counted from 0, in bounded memory.

        Args:
            columns: the fields that are wanted; a format that reads whole records may ignore it.

        Raises:
            InputError: the file is damaged beyond skipping.
        """

    def records_at(
        self, path: Path, layout: TokenLayout | None, rows: np.ndarray, columns: Collection[str]
    ) -> Iterator[tuple[int, Record]]:
        """Yield those of `records` at these rows, shape (K,), sorted."""
        wanted = set(rows.tolist())
        for row, record in self.records(path, layout, columns):
            if row in wanted:
                yield row, record
                wanted.remove(row)
            if not wanted:
                return

    @abstractmethod
    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        """Count the records, or estimate their number from about the first `max_bytes` bytes."""

    def check_alike(self, paths: Sequence[Path]) -> None:
        """Make sure that `write` can bring these files together.

        Raises:
            InputError: it cannot.
        """
        return

    @abstractmethod
    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Copy what was chosen, source after source, into `directory`; an earlier output is replaced as a whole.

        Returns:
            every file or dataset directory written.
        """
