"""datatrove's tokenised files, which nanotron reads: path.ds holds the tokens, path.ds.index where documents end.

    path.ds.index       the end of each document, in tokens, u64 little-endian
    path.ds.metadata    "tokenizer|bytes of a token", the number of tokens, and that number for people: three lines

Source: TokenizedFile of datatrove.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from direct_anneal.data.formats.layout import TokenLayout, open_tokens, size_of, smallest
from direct_anneal.data.formats.tokens import Tokenised, TokenWriter
from direct_anneal.errors import InputError, option

_BY_SIZE: dict[str, np.dtype] = {"2": np.dtype("<u2"), "4": np.dtype("<u4")}
_LONGEST_NAME = 4096


def index_of(path: Path) -> Path:
    """Return the index file of path.ds."""
    return path.with_name(path.name + ".index")


def metadata_of(path: Path) -> Path:
    """Return the metadata file of path.ds; may be missing."""
    return path.with_name(path.name + ".metadata")


def read(path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
    """Yield each document's tokens as views of path.ds; memory: O(documents).

    Raises:
        InputError: the index is missing, damaged, or does not go with the tokens.
    """
    index = index_of(path)
    num_bytes = size_of(index)
    if num_bytes % 8:
        raise _damaged(index, f"its {num_bytes:,} bytes are no multiple of 8")
    tokens = open_tokens(path, _dtype(path, layout))
    ends = np.memmap(index, dtype="<u8", mode="r") if num_bytes else np.empty(0, "<u8")
    if (ends[1:] < ends[:-1]).any():
        raise _damaged(index, "its documents end before they begin")
    num_tokens = int(ends[-1]) if ends.size else 0
    if num_tokens != len(tokens):
        raise _damaged(
            index,
            f"its last document ends at token {num_tokens:,}, and {path.name} has {len(tokens):,} {tokens.dtype.name} "
            f"tokens (another type is named with {option('token_dtype')})",
        )
    start = 0
    for end in ends:
        yield tokens[start : int(end)]
        start = int(end)


def _dtype(path: Path, layout: TokenLayout) -> np.dtype:
    """Return the token type from the metadata; from the layout where there is none, or none of ours."""
    metadata = metadata_of(path)
    if metadata.is_file():
        with metadata.open("rb") as file:
            first_line = file.readline(_LONGEST_NAME).decode("utf-8", errors="replace")
        size = first_line.strip().rpartition("|")[2]
        if size not in _BY_SIZE:
            raise InputError(
                subject=str(metadata),
                must="say after | that a token has 2 or 4 bytes",
                got=f"but says {size[:20]!r}",
                do=f"mend it, or remove it and name the type with {option('token_dtype')}",
            )
        return _BY_SIZE[size]
    return np.dtype(layout.dtype).newbyteorder("<")


def _damaged(index: Path, reason: str) -> InputError:
    return InputError(
        subject=str(index), must="be the index of the .ds beside it", got=f"but {reason}", do="write both again"
    )


class Datatrove(Tokenised):
    """`.ds` with its index and, where it has them, its metadata."""

    name = "ds"
    suffixes = (".ds",)

    def files(self, path: Path) -> list[Path]:
        return [path, index_of(path), *filter(Path.is_file, [metadata_of(path)])]

    def documents(self, path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
        return read(path, layout)

    def writer(self, path: Path, vocab_size: int) -> TokenWriter:
        return DatatroveWriter(path, smallest(vocab_size))


class DatatroveWriter:
    """Writer of path.ds, its index and its metadata. Memory: 8 bytes a document.

    Args:
        tokenizer: the name that the metadata gives; readers take no more than the tokens' size from it.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokenizer: str = "unknown") -> None:
        tokens = path.with_name(path.name + ".ds")
        self.paths = [tokens, index_of(tokens), metadata_of(tokens)]
        self._dtype = dtype
        self._tokenizer = tokenizer
        self._ends = array("Q")
        self._num_tokens = 0
        self._tokens = tokens.open("wb")

    def add(self, tokens: np.ndarray) -> None:
        """Add a document, shape (T,), with its end token if it shall have one."""
        self._tokens.write(tokens.astype(self._dtype).tobytes())
        self._num_tokens += len(tokens)
        self._ends.append(self._num_tokens)

    def close(self) -> None:
        """Write index and metadata; nothing may be added after it."""
        self._tokens.close()
        self.paths[1].write_bytes(np.array(self._ends, dtype="<u8").tobytes())
        name = " ".join(self._tokenizer.split())
        lines = f"{name}|{self._dtype.itemsize}", f"{self._num_tokens}", f"{self._num_tokens / 1e6:.3g} M tokens"
        self.paths[2].write_text("\n".join(lines), encoding="utf-8")
