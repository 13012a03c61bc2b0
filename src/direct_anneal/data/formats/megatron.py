"""Megatron's indexed datasets: path.bin holds the tokens, path.idx where the sequences and documents lie.

    path.idx    b"MMIDIDX\\0\\0", version 1 (u64), dtype code (u8), S sequences (u64), D (u64): 34 bytes, little-endian
                sequence lengths (S,) int32; their first bytes in path.bin (S,) int64; the sequence that each document
                begins with, and S at the end, (D,) int64; in multimodal sets a mode for each sequence (S,) int8

Source: IndexedDataset of megatron-core.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from direct_anneal.data.formats.layout import TokenLayout, open_tokens, size_of
from direct_anneal.data.formats.tokens import Tokenised, TokenWriter
from direct_anneal.errors import InputError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[int, np.dtype] = dict(
    zip((1, 2, 3, 4, 5, 8), map(np.dtype, ("u1", "i1", "<i2", "<i4", "<i8", "<u2")), strict=True)
)
# What megatron-core itself takes the smaller type for.
_UINT16_BELOW = 65500


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type that Megatron gives the tokens of such a vocabulary: it has no uint32."""
    return np.dtype("<u2") if vocab_size < _UINT16_BELOW else np.dtype("<i4")


def index_of(path: Path) -> Path:
    """Return the index beside path.bin."""
    return path.with_suffix(".idx")


def read(path: Path) -> Iterator[np.ndarray]:
    """Yield each document's tokens as views of path.bin; memory: O(documents).

    Raises:
        InputError: the index is damaged, or does not go with the tokens.
    """
    index = index_of(path)
    if not index.is_file():
        raise InputError(
            subject=str(path),
            must=f"lie beside its index {index.name}, as Megatron's do",
            got="but that is not there",
            do="put it there; bare tokens, each document with an end token, are read from files that end in .npy",
        )
    dtype, lengths, pointers, documents = _open_index(index)
    tokens = open_tokens(path, dtype)
    # Every writer puts sequence after sequence. An index that leaps could name the same bytes a million times.
    ends = np.cumsum(lengths, dtype=np.int64)
    if lengths.size and (lengths.min() < 0 or not np.array_equal(pointers, (ends - lengths) * dtype.itemsize)):
        raise _damaged(index, "its sequences do not lie one after another")
    num_tokens = int(ends[-1]) if ends.size else 0
    if num_tokens != len(tokens):
        raise _damaged(index, f"it counts {num_tokens:,} tokens, but {path.name} holds {len(tokens):,}")
    in_order = documents.size and documents[0] == 0 and documents[-1] == len(lengths)
    if not in_order or (documents[1:] < documents[:-1]).any():  # (differences could overflow)
        raise _damaged(index, f"its documents do not divide its {len(lengths):,} sequences")
    bounds = np.concatenate([[0], ends])[documents]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield tokens[start:end]


def _open_index(index: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    num_bytes = size_of(index)
    with index.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise _damaged(index, "it does not begin as one")
    _, version, code, num_sequences, num_bounds = _HEADER.unpack(header)
    if version != 1 or code not in _CODES or not num_bounds:
        raise _damaged(index, f"its version is {version}, its type of tokens {code}, its bounds are {num_bounds:,}")
    # Before anything of that length is looked at: a count is but eight bytes that anyone can write.
    expected = _HEADER.size + 12 * num_sequences + 8 * num_bounds
    if num_bytes not in (expected, expected + num_sequences):
        raise _damaged(
            index,
            f"{num_sequences:,} sequences and {num_bounds:,} bounds of documents take {expected:,} bytes, but it has "
            f"{num_bytes:,}",
        )
    raw = np.memmap(index, dtype=np.uint8, mode="r", offset=_HEADER.size)
    lengths, pointers, documents = np.split(raw[: expected - _HEADER.size], [4 * num_sequences, 12 * num_sequences])
    return _CODES[code], lengths.view("<i4"), pointers.view("<i8"), documents.view("<i8")


def _damaged(index: Path, reason: str) -> InputError:
    return InputError(
        subject=str(index), must="be the index of Megatron's .bin beside it", got=f"but {reason}", do="write both again"
    )


class Megatron(Tokenised):
    """Files of tokens for Megatron: `.bin` with its `.idx`."""

    name = "bin"
    suffixes = (".bin",)

    def recognises(self, path: Path) -> bool:
        """Look at the index beside it: other binaries bear the ending, too."""
        return index_of(path).is_file()

    def files(self, path: Path) -> list[Path]:
        return [path, index_of(path)]

    def documents(self, path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
        return read(path)

    def writer(self, path: Path, vocab_size: int) -> TokenWriter:
        return MegatronWriter(path, token_dtype(vocab_size))


class MegatronWriter:
    """Writer of path.bin and path.idx, a sequence for each document. Memory: 4 bytes a document."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.paths = [path.with_name(path.name + ".bin"), path.with_name(path.name + ".idx")]
        self._dtype = dtype
        self._lengths = array("i")
        self._tokens = self.paths[0].open("wb")

    def add(self, tokens: np.ndarray) -> None:
        """Add a document, shape (T,), with its end token if it shall have one."""
        self._tokens.write(tokens.astype(self._dtype).tobytes())
        self._lengths.append(len(tokens))

    def close(self) -> None:
        """Write the index; nothing may be added after it."""
        self._tokens.close()
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if self._lengths else np.empty(0, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        code = next(code for code, dtype in _CODES.items() if dtype == self._dtype)
        with self.paths[1].open("wb") as index:
            index.write(_HEADER.pack(_MAGIC, 1, code, len(lengths), len(lengths) + 1))
            index.write(lengths.astype("<i4").tobytes())
            index.write(((ends - lengths) * self._dtype.itemsize).astype("<i8").tobytes())
            index.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
