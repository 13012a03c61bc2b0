"""What files of tokens do not say of themselves, and the bounds that all of them are read under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from direct_anneal.errors import InputError

# A document is held in memory whole. As many tokens as this are 64 MiB of uint32, and no document has them.
MAX_DOCUMENT_TOKENS = 2**24

DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How tokens lie in files that hold nothing else.

    Attributes:
        dtype: "uint16" or "uint32", little-endian.
        eos_id: the token that ends a document; None where nobody knows it.
    """

    dtype: str = "uint32"
    eos_id: int | None = None

    @classmethod
    def of(cls, vocab_size: int, eos_id: int | None, dtype: str | None = None) -> TokenLayout:
        """As trainers write them: the smaller dtype that holds the vocabulary, unless another is named."""
        return cls(dtype=dtype or smallest(vocab_size).name, eos_id=eos_id)


def smallest(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds every token, little-endian."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def open_tokens(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file's tokens, shape (T,), through a memory map.

    Raises:
        InputError: its length is no multiple of a token's, or it cannot be opened.
    """
    num_bytes = size_of(path)
    if num_bytes % dtype.itemsize:
        raise InputError(
            f"{path} must hold whole {dtype.name} tokens, but its {num_bytes:,} bytes are no multiple of "
            f"{dtype.itemsize}: name its type with --token-dtype, or write it again"
        )
    if not num_bytes:  # which no map can hold
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        InputError: it is not there.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} must be a readable file, but is not ({error.strerror}): put it there") from error
