"""Headerless arrays of tokens (.npy), as OLMo-core and Dolma have them: each document with an end token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from direct_anneal.data.formats.layout import TokenLayout, open_tokens, refuse_contradicted, smallest
from direct_anneal.data.formats.tokens import Tokenised, TokenWriter
from direct_anneal.errors import InputError, option

_NUMPY_MAGIC = b"\x93NUMPY"
_CHUNK_TOKENS = 2**20


def has_header(path: Path) -> bool:
    """True if it is a NumPy file of the ordinary kind, which no trainer reads tokens from."""
    with path.open("rb") as file:
        return file.read(len(_NUMPY_MAGIC)) == _NUMPY_MAGIC


def read(path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
    """Yield each document's tokens, its end token among them, as views of the file; memory: one chunk.

    What follows the last end token is a document, too.

    Raises:
        InputError: the file has a header, is cut within a token, or no end token is known.
    """
    if has_header(path):
        raise InputError(
            subject=str(path),
            must="hold bare tokens, as OLMo-core's .npy files do",
            got="but has NumPy's header",
            do="write the array with tofile instead of numpy.save",
        )
    if layout.eos_id is None:
        raise InputError(
            subject=str(path),
            must="have a token at the end of each document",
            got="but nobody knows which",
            do=f"name it with {option('eos_id')}",
        )
    tokens = open_tokens(path, np.dtype(layout.dtype).newbyteorder("<"))
    refuse_contradicted(path, tokens, layout)
    start = 0
    for begin in range(0, len(tokens), _CHUNK_TOKENS):
        ends = begin + 1 + np.flatnonzero(tokens[begin : begin + _CHUNK_TOKENS] == layout.eos_id)
        for end in ends.tolist():
            yield tokens[start:end]
            start = end
    if start < len(tokens):
        yield tokens[start:]


class Memmap(Tokenised):
    """Headerless `.npy`."""

    name = "npy"
    suffixes = (".npy",)

    def recognises(self, path: Path) -> bool:
        """Look at the beginning: other arrays bear the ending, too."""
        try:
            return not has_header(path)
        except OSError:  # to be told of where it is opened
            return True

    def documents(self, path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
        return read(path, layout)

    def writer(self, path: Path, vocab_size: int) -> TokenWriter:
        return MemmapWriter(path, smallest(vocab_size))


class MemmapWriter:
    """Writer of one such file, path.npy."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.paths = [path.with_name(path.name + ".npy")]
        self._file = self.paths[0].open("wb")
        self._dtype = dtype

    def add(self, tokens: np.ndarray) -> None:
        """Add a document, shape (T,), with its end token if it shall have one."""
        self._file.write(tokens.astype(self._dtype).tobytes())

    def close(self) -> None:
        """Finish the file; nothing may be added after it."""
        self._file.close()
