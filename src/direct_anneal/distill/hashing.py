"""Hashed n-grams of texts and of tokens: which places of a scorer's table each document touches.

What is a word, how it is hashed and how pairs are made is part of the scorer's format (docs/format.md): equal on every
machine, whatever the batch, the block or PYTHONHASHSEED. All arithmetic is on integers modulo 2⁶⁴.

n documents of a block, B bytes of text, U words or tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPACE, _WORD, _MARKS, _ALONE, _INSIDE = range(5)
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd: 2⁶⁴ over the golden ratio, as in splitmix64
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)  # odd; sets the first word of a pair apart from the second
_MIX = np.uint64(0xD6E8FEB86659FD93)  # odd, of rrmxmx


def words(text: bytes, bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash every word of documents that lie end to end.

    A word is a run of letters, digits and `_`, or of other marks, cut at white space; every character from U+3000 on
    is a word of its own. A-Z count as a-z. A word's hash takes in its bytes eight at a time.

    Args:
        text: UTF-8 of all documents, B bytes.
        bounds: document i is text[bounds[i]:bounds[i + 1]], shape (n + 1,), from 0 to B.

    Returns:
        hashes in order, (U,), and bounds of each document's, (n + 1,).

    Cost: O(B), some 10 ns a byte; memory a few times the text.
    """
    starts, ends = _runs(text, bounds)
    padded = text.translate(_LOWER) + bytes(8)
    eights = np.ndarray((len(text) + 1,), dtype="<u8", buffer=padded, strides=(1,))  # one from every byte on
    sizes = ends - starts
    hashes = sizes.astype(np.uint64) * _STEP
    hashes = _mixed(hashes ^ (eights[starts] & _FIRST[np.minimum(sizes, 8)]))
    longer = np.flatnonzero(sizes > 8)
    offset = 8
    while len(longer):
        left = sizes[longer] - offset
        part = eights[starts[longer] + offset] & _FIRST[np.minimum(left, 8)]
        hashes[longer] = _mixed(hashes[longer] * _PAIR ^ part)
        longer, offset = longer[left > 8], offset + 8
    return hashes, np.searchsorted(starts, bounds).astype(np.int64)


def tokens(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Hash tokens, shape (U,): (id + 1) P."""
    return (ids.astype(np.uint64) + np.uint64(1)) * _STEP


def places(
    hashes: NDArray[np.uint64], bounds: NDArray[np.int64], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places in [0, 2^bits) of each document's U words, then of its U − n pairs of neighbours.

    Returns:
        places of all words, (U,), and of the pair that begins at each word, (U,), −1 where a document ends.
    """
    shift = np.uint64(64 - bits)
    single = (_mixed(hashes) >> shift).astype(np.int64)
    pairs = np.full(len(hashes), -1, dtype=np.int64)
    if len(hashes) > 1:
        pairs[:-1] = (_mixed(hashes[:-1] * _PAIR + hashes[1:]) >> shift).astype(np.int64)
    last = bounds[1:][bounds[1:] > bounds[:-1]] - 1
    pairs[last] = -1
    return single, pairs


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread what the low bits know to the high ones, which become the place."""
    mixed = hashes ^ (hashes >> np.uint64(32))
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(29)
    mixed *= _STEP
    return mixed


def _runs(text: bytes, bounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the beginnings and ends of words, (U,) each."""
    kinds = np.frombuffer(text.translate(_KINDS), dtype=np.uint8)
    changes = np.empty(len(kinds), dtype=bool)
    np.not_equal(kinds[1:], kinds[:-1], out=changes[1:])
    edges = bounds[:-1][bounds[:-1] < bounds[1:]]  # where a document begins
    changes[edges] = True
    at = np.flatnonzero(changes)
    kind = kinds[at]
    if not text.isascii():
        # The bytes inside a character are no change. After them, what counts is the kind of the character, whose
        # first byte stands before the change into it.
        inside = np.flatnonzero(kind == _INSIDE)
        after = inside[inside + 1 < len(at)] + 1
        of_character = kinds[at[after - 1] - 1]
        is_edge = edges[np.searchsorted(edges, at[after]).clip(max=len(edges) - 1)] == at[after]
        keep = np.ones(len(at), dtype=bool)
        keep[inside] = False
        keep[after] = (kind[after] != of_character) | (kind[after] == _ALONE) | is_edge
        kept = np.flatnonzero(keep)
        at, kind = at[kept], kind[kept]
    is_word = np.flatnonzero(kind != _SPACE)
    return at[is_word], np.append(at, len(text))[is_word + 1]


def _kinds() -> bytes:
    """Classify each byte by the character that it begins."""
    kinds = np.full(256, _MARKS, dtype=np.uint8)
    kinds[:0x21] = kinds[0x7F] = _SPACE
    kinds[[*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), 0x5F]] = _WORD
    kinds[0x80:0xC0] = _INSIDE
    kinds[0xC0:0xE2] = _WORD  # U+0080 to U+1FFF; 0xE2 begins U+2000 to U+2FFF, which are marks
    kinds[0xE3:] = _ALONE  # U+3000 and beyond: what is written without spaces
    return kinds.tobytes()


_KINDS = _kinds()
_LOWER = bytes(range(256)).lower()  # A-Z alone
_FIRST = np.array([2 ** (8 * size) - 1 for size in range(9)], dtype=np.uint64)  # masks of so many bytes
