"""Shards of bounded size, common to all formats, with the place of every document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Document:
    """One of the chosen.

    Attributes:
        id: unique.
        domain: its own.
        tokens: (T,) int64, with the end token where the format has one.
        num_prompt: how many leading tokens of it are not to be predicted.
        record: a line of JSON, in formats of records; empty in formats of tokens.
    """

    id: str
    domain: str
    tokens: np.ndarray
    num_prompt: int
    record: bytes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that shape the files.

    Attributes:
        vocab_size: every token lies in [0, vocab_size).
        eos_id: the token that ends a document; None in formats of records.
        tokenizer: its name, for formats that give one.
        window: T, tokens of a training sequence, for formats that are cut into them.
        shard_bytes: a file that holds something already is not filled beyond this.
        has_prompts: some documents begin with tokens that are not to be predicted.
        schema: of the records; empty in formats of tokens.
    """

    vocab_size: int
    eos_id: int | None
    tokenizer: str
    window: int
    shard_bytes: int
    has_prompts: bool
    schema: pa.Schema


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The facts for a configuration snippet.

    Attributes:
        out: the directory.
        setting: as it was written.
        share: of the training data; the rest is the stable phase's.
        files: (name, tokens of the documents in it).
    """

    out: str
    setting: Setting
    share: float
    files: list[tuple[str, int]]


class Shard(Protocol):
    """One file that is being written, and what goes with it."""

    name: str

    def size(self, document: Document) -> int:
        """Return the bytes that it would take."""
        ...

    def add(self, document: Document) -> int:
        """Write it; return its place: the token or the row that it begins at."""
        ...

    def close(self) -> None:
        """Finish; nothing may be added after it."""
        ...


class Writer(Protocol):
    """Writer of documents in order."""

    def add(self, document: Document) -> tuple[str, int]:
        """Write it; return the file's name and the place in it."""
        ...

    def close(self) -> None:
        """Complete the files; nothing may be added after it."""
        ...


class Sharded:
    """One shard after another, part-00000, part-00001, ..., each but for a single document of at most `shard_bytes`.

    Args:
        open_shard: opens one at a path without extension.
        finish: called at the end with the names of all files.
    """

    def __init__(
        self,
        directory: Path,
        shard_bytes: int,
        open_shard: Callable[[Path], Shard],
        finish: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._open_shard = open_shard
        self._finish = finish
        self._names: list[str] = []
        self._num_bytes = 0
        self._shard = self._next()

    def _next(self) -> Shard:
        shard = self._open_shard(self._directory / f"part-{len(self._names):05d}")
        self._names.append(shard.name)
        self._num_bytes = 0
        return shard

    def add(self, document: Document) -> tuple[str, int]:
        """Write it; return the file's name and the place in it."""
        size = self._shard.size(document)
        if self._num_bytes and self._num_bytes + size > self._shard_bytes:
            self._shard.close()
            self._shard = self._next()
        self._num_bytes += size
        return self._shard.name, self._shard.add(document)

    def close(self) -> None:
        """Complete the last shard, and what is said of all of them."""
        self._shard.close()
        self._finish(self._names)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One that a trainer reads.

    Attributes:
        holds: "records" with their text, or "tokens".
        open: (directory, setting) → writer.
        snippet: what to paste.
        pasted_into: the snippet's own file extension.
        shard_bytes: where the user names no size.
        masks_prompts: whether it can say that tokens are not to be predicted.
        has_window: files or snippet hang on the tokens of a training sequence.
    """

    holds: str
    open: Callable[[Path, Setting], Writer]
    snippet: Callable[[Exported], str]
    pasted_into: str
    shard_bytes: int
    masks_prompts: bool = False
    has_window: bool = False


MIB = 2**20
