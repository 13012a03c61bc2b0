"""Files of tokens alone, as trainers have them: a format's reader and its writer side by side.

for tokens in documents(Path("pool/a.bin"), "megatron", layout): ...     # (T,), one after another
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from direct_anneal.data.formats import datatrove, megatron, memmap
from direct_anneal.data.formats.datatrove import DatatroveWriter
from direct_anneal.data.formats.layout import DTYPES, MAX_DOCUMENT_TOKENS, TokenLayout, smallest
from direct_anneal.data.formats.megatron import MegatronWriter, token_dtype
from direct_anneal.data.formats.memmap import MemmapWriter, has_header

__all__ = [
    "DTYPES",
    "MAX_DOCUMENT_TOKENS",
    "TOKENISED",
    "DatatroveWriter",
    "MegatronWriter",
    "MemmapWriter",
    "TokenLayout",
    "TokenWriter",
    "documents",
    "has_header",
    "main_file",
    "parts",
    "smallest",
    "token_dtype",
    "token_writer",
]

TOKENISED = {".npy": "npy", ".bin": "bin", ".ds": "ds"}


class TokenWriter(Protocol):
    """Writes one file of tokens, and what goes with it.

    Attributes:
        paths: the files, that of the tokens first.
    """

    paths: list[Path]

    def add(self, tokens: np.ndarray) -> None:
        """A document, shape (T,)."""
        ...

    def close(self) -> None:
        """Nothing may be added after it."""
        ...


def documents(path: Path, format: str, layout: TokenLayout) -> Iterator[np.ndarray]:
    """Yields each document's tokens, shape (T,), as views of the file.

    Raises:
        InputError: the file is damaged, or its parts do not go together.
    """
    if format == "npy":
        return memmap.read(path, layout)
    return megatron.read(path) if format == "bin" else datatrove.read(path, layout)


def parts(path: Path, format: str) -> list[Path]:
    """Every file that is read for this one."""
    if format == "npy":
        return [path]
    if format == "bin":
        return [path, megatron.index_of(path)]
    return [path, datatrove.index_of(path), *filter(Path.is_file, [datatrove.metadata_of(path)])]


def main_file(path: Path) -> Path | None:
    """The tokens that a file beside them goes with, if it does: a.bin for a.idx."""
    name = path.name
    for ending, instead in ((".idx", ".bin"), (".ds.index", ".ds"), (".ds.metadata", ".ds"), (".csv.gz", ".npy")):
        main = path.with_name(name.removesuffix(ending) + instead)
        if name.endswith(ending) and main.is_file():
            return main
    return None


def token_writer(format: str, path: Path, vocab_size: int) -> TokenWriter:
    """A writer of path.<format>, in the type that its trainer takes for the vocabulary."""
    if format == "npy":
        return MemmapWriter(path, smallest(vocab_size))
    if format == "bin":
        return MegatronWriter(path, token_dtype(vocab_size))
    return DatatroveWriter(path, smallest(vocab_size))
