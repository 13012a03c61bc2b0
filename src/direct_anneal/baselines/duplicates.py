"""Documents that are there already: the same but for white space, or nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from direct_anneal.io.digests import short_digest

DuplicateMethod = Literal["exact", "minhash"]

THRESHOLD = 0.8  # of Jaccard similarity
SHINGLE_WORDS = 5
# A pair of similarity 0.8 shares a band with probability 1 − (1 − 0.8⁴)³² > 0.9999, one of 0.3 with 0.23.
BANDS, ROWS = 32, 4
_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that numbers a run of words, modulo 2⁶⁴; odd


def duplicates(texts: Sequence[str], ids: Sequence[str], method: DuplicateMethod = "minhash") -> NDArray[np.bool_]:
    """Mark the documents that repeat one of a smaller id, (N,) bool.

    "exact": equal up to white space. "minhash": also those whose sets of five words in a row have a Jaccard similarity
    of at least 0.8 to the first document, by id, that they share a band of minima with; similarity is counted, not
    estimated. Near-duplicates of near-duplicates are not followed further.

    Args:
        ids: (N,), unique.

    Cost: "minhash" 128 hashes a shingle; memory the shingles and different words of all documents.
    """
    order = sorted(range(len(texts)), key=lambda i: ids[i])
    repeated = np.zeros(len(texts), dtype=bool)
    seen: set[bytes] = set()
    for i in order:
        key = short_digest(" ".join(texts[i].split()))
        repeated[i] = key in seen
        seen.add(key)
    if method == "exact":
        return repeated
    known: dict[str, int] = {}
    shingles = {i: _shingles(texts[i], known) for i in order if not repeated[i]}
    multipliers, offsets = _hash_functions()
    first: dict[tuple[int, bytes], int] = {}
    for i, own in shingles.items():  # still in the order of ids
        minima = ((own[:, None] * multipliers + offsets) >> np.uint64(32)).min(0).reshape(BANDS, ROWS)
        bands = [(band, minima[band].tobytes()) for band in range(BANDS)]
        met = {first[band] for band in bands if band in first}
        repeated[i] = any(jaccard(own, shingles[other]) >= THRESHOLD for other in met)
        if not repeated[i]:
            for band in bands:
                first.setdefault(band, i)
    return repeated


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Return |A ∩ B| / |A ∪ B| of two sets, each sorted and without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _shingles(text: str, known: dict[str, int]) -> NDArray[np.uint64]:
    """Return hashes of the runs of five words, at least one, sorted.

    A run's hash is a polynomial of its words' hashes, so that each word is hashed once.

    Args:
        known: hashes of words; those of this text are added.
    """
    words = text.lower().split() or [""]
    for word in words:
        if word not in known:
            known[word] = int.from_bytes(short_digest(word, 8))
    hashes = np.array([known[word] for word in words], np.uint64)
    num_runs = max(1, len(words) - SHINGLE_WORDS + 1)
    runs = np.zeros(num_runs, np.uint64)
    for place in range(min(SHINGLE_WORDS, len(words))):
        runs = runs * _BASE + hashes[place : place + num_runs]
    return np.unique(runs)


def _hash_functions() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hash functions of the family (a h + b mod 2⁶⁴) >> 32, a odd; always the same ones."""
    generator = np.random.default_rng(0)
    multipliers = generator.integers(2**64, size=BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    return multipliers, generator.integers(2**64, size=BANDS * ROWS, dtype=np.uint64)
