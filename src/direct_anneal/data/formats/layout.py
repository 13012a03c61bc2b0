"""The layout that files of tokens do not state, and the limits for reading them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from direct_anneal.errors import InputError, flag, option

# A document is held in memory whole. As many tokens as this are 64 MiB of uint32, and no document has them.
MAX_DOCUMENT_TOKENS = 2**24

DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The layout of files that hold tokens alone.

    Attributes:
        dtype: "uint16" or "uint32", little-endian.
        eos_id: the token that ends a document; None where nobody knows it.
        guessed: the options of these that nobody named; what contradicts them is refused.
        vocab_size: tokens lie in [0, vocab_size), if that is known.
    """

    dtype: str = "uint32"
    eos_id: int | None = None
    # Neither says how tokens lie: a layout is the same whoever knows of it.
    guessed: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    vocab_size: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, vocab_size: int, model_eos_id: int | None, dtype: str | None = None, eos_id: int | None = None
    ) -> TokenLayout:
        """Guess the layout that trainers write: the smaller dtype that holds the vocabulary, unless another is named.

        Args:
            model_eos_id: the end token of the model, for where none is named.
            dtype, eos_id: as the user names them.
        """
        named = {"token_dtype": dtype, "eos_id": eos_id}
        return cls(
            dtype=dtype or smallest(vocab_size).name,
            eos_id=model_eos_id if eos_id is None else eos_id,
            guessed=frozenset(name for name, value in named.items() if value is None),
            vocab_size=vocab_size,
        )

    def assumed(self) -> str:
        """List the assumptions for the summary; empty where all was named."""
        told = []
        if "token_dtype" in self.guessed:
            told.append(f"read as {self.dtype}, for a vocabulary of {self.vocab_size:,} ({flag('token_dtype')})")
        if "eos_id" in self.guessed:
            told.append(f"documents end with token {self.eos_id}, the model's ({flag('eos_id')})")
        return " and ".join(told)


def smallest(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the smaller of uint16 and uint32 that holds every token, little-endian."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


# Of a file, to tell chance from a wrong guess: so few tokens prove nothing, and so many are looked at.
_FEWEST = 16
_LOOKED_AT = 2**22
_STRANGE = 0.05  # share of tokens outside the vocabulary, above that of a damaged document or two


def refuse_contradicted(path: Path, tokens: np.ndarray, layout: TokenLayout) -> None:
    """Refuse a file whose tokens, shape (T,), contradict what was guessed of it. Cost: reads at most 16 MiB.

    Raises:
        InputError: it is of the other type, of another vocabulary, or documents end with another token.
    """
    head = tokens[:_LOOKED_AT]
    if len(head) < _FEWEST:
        return
    if "token_dtype" in layout.guessed:
        _refuse_type(path, head, layout)
    if "eos_id" in layout.guessed and layout.eos_id is not None:
        count = int((head == layout.eos_id).sum())
        if count > len(head) / 3 or (count == 0 and not (tokens == layout.eos_id).any()):
            raise InputError(
                subject=str(path),
                must=f"have token {layout.eos_id}, the model's end token, at the end of each document",
                got=f"but it is {f'{count:,} of its' if count else 'none of its'} {len(head):,} tokens",
                do=f"name the token that ends a document there with {option('eos_id')}",
            )


def _refuse_type(path: Path, head: np.ndarray, layout: TokenLayout) -> None:
    name = option("token_dtype")
    if layout.dtype == "uint16" and not head[1::2].any() and head[::2].any():
        raise InputError(
            subject=str(path),
            must=f"hold uint16 tokens, as a vocabulary of {layout.vocab_size:,} suggests",
            got="but every second one is 0, as if they were uint32",
            do=f"name its type with {name}, uint32 or uint16",
        )
    strange = 0 if layout.vocab_size is None else int((head >= layout.vocab_size).sum())
    if strange > _STRANGE * len(head):
        raise InputError(
            subject=str(path),
            must=f"hold {layout.dtype} tokens below {layout.vocab_size:,}, the vocabulary's size",
            got=f"but {strange:,} of its {len(head):,} are not",
            do=f"name its type with {name}, or take the model whose tokenizer made it",
        )


def open_tokens(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return the file's tokens, shape (T,), through a memory map.

    Raises:
        InputError: its length is no multiple of a token's, or it cannot be opened.
    """
    num_bytes = size_of(path)
    if num_bytes % dtype.itemsize:
        raise InputError(
            subject=str(path),
            must=f"hold whole {dtype.name} tokens",
            got=f"but its {num_bytes:,} bytes are no multiple of {dtype.itemsize}",
            do=f"name its type with {option('token_dtype')}, or write it again",
        )
    if not num_bytes:  # which no map can hold
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def size_of(path: Path) -> int:
    """Return bytes of a file.

    Raises:
        InputError: it is not there.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(subject=str(path), must="be a file", got="but is none", do="put it there")
        return path.stat().st_size
    except OSError as error:
        raise InputError(
            subject=str(path), must="be a readable file", got=f"but is not ({error.strerror})", do="put it there"
        ) from error
