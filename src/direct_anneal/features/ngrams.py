"""Hashed token n-gram features: rows of unit length beside the gradients.

n documents of a shard, T tokens of one, L places of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.features.documents import Documents
from direct_anneal.features.store import ROWS_PER_SHARD, FeatureStore, ShardRows

NGRAM_SIZE = 1024  # L
_VERSION = 1  # of what a row holds
_PLACES = 4  # of an n-gram in a row: two n-grams that share one seldom share more
_BLOCK_TOKENS = 2**14  # of documents at once: their arrays stay in the processor's cache
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio
_MINUS = np.uint64(1 << 63)  # a float64's sign


def ngram_rows(documents: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return each document's distinct tokens and pairs of neighbours, as log(1 + count) with random signs at four
    places.

    A random projection of a document's vector of log counts, of unit length: inner products of rows are, up to noise
    of about 1/√L, the cosines of those vectors.

    Args:
        documents: n of them, tokens of shape (T,), at least one.

    Returns:
        shape (n, L), the same on every machine, and whichever documents come together.

    Source: feature hashing, Weinberger et al., ICML 2009; several places as in sparse random projections, Kane and
    Nelson, JACM 2014. Cost: O(T log T) for each document, some 60 ns a token; memory for `_BLOCK_TOKENS` beside the
    rows.
    """
    rows = np.empty((len(documents), NGRAM_SIZE))
    ends = np.cumsum([len(tokens) for tokens in documents])
    first = 0
    while first < len(documents):
        begun = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, begun + _BLOCK_TOKENS, side="right")))
        _fill(rows[first:end], documents[first:end])
        first = end
    for row in rows:
        length = math.sqrt(row.dot(row))
        if length > 0:
            row /= length
    return rows


def _fill(rows: NDArray[np.float64], documents: Sequence[NDArray[np.int64]]) -> None:
    """Write these documents' rows before they are scaled, shape (n, L)."""
    ngrams, counts, starts = _counted(documents)
    weights = np.log1p(np.arange(counts.max() + 1)).take(counts).view(np.uint64)
    np.bitwise_xor(weights, _MINUS, out=weights)
    numbers = np.diff(starts, append=len(ngrams))
    offsets = np.repeat(np.arange(0, rows.size, NGRAM_SIZE, dtype=np.uint64), numbers)
    bits, spare = np.empty_like(ngrams), np.empty_like(ngrams)
    for place in range(_PLACES):
        _mix(np.add(ngrams, np.uint64((place + 1) * _GOLDEN % 2**64), out=bits), spare)
        np.left_shift(bits, np.uint64(63), out=spare)  # the sign: minus for an even number
        signed = np.bitwise_xor(spare, weights, out=spare).view(np.float64)
        np.right_shift(bits, np.uint64(1), out=bits)
        np.bitwise_and(bits, np.uint64(NGRAM_SIZE - 1), out=bits)
        np.add(bits, offsets, out=bits)
        found = np.bincount(bits.view(np.int64), signed, rows.size).reshape(rows.shape)
        if place:
            rows += found
        else:
            rows[:] = found


def _counted(
    documents: Sequence[NDArray[np.int64]],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.intp]]:
    """Return each document's distinct n-grams, ordered by hash, (U,); how often each; where each document's begin."""
    tokens = np.concatenate(documents, dtype=np.uint64, casting="unsafe")
    ends = 2 * np.cumsum([len(tokens) for tokens in documents])
    begins = np.concatenate([[0], ends[:-1]])
    # A token, then the pair that it begins; the last pair of a document reaches into the next one and is left out.
    found = np.empty((len(tokens), 2), dtype=np.uint64)
    spare, hashes = np.empty_like(tokens), np.bitwise_xor(tokens, np.uint64(1 + _GOLDEN))
    found[:, 0] = _mix(hashes, spare)
    _mix(np.bitwise_xor(tokens, np.uint64(2 + _GOLDEN), out=hashes), spare)
    hashes += np.uint64(_GOLDEN)
    found[:-1, 1] = _mix(np.bitwise_xor(hashes[:-1], tokens[1:], out=hashes[:-1]), spare[:-1])
    ngrams = found.reshape(-1)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        ngrams[begin : end - 1].sort()
    is_new = np.empty(len(ngrams), dtype=bool)
    np.not_equal(ngrams[1:], ngrams[:-1], out=is_new[1:])
    is_new[begins] = True
    is_new[ends - 1] = False
    at = np.flatnonzero(is_new)
    starts = np.searchsorted(at, begins)
    counts = np.empty_like(at)
    np.subtract(at[1:], at[:-1], out=counts[:-1])
    counts[-1] = len(ngrams) - at[-1]
    counts[np.append(starts[1:], len(at)) - 1] -= 1  # what was left out
    return ngrams.take(at), counts, starts


def ngrams_of(
    directory: Path,
    corpus: Corpus,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    replace: bool = False,
    advance: Callable[[int], object] = lambda _: None,
    wanted: Callable[[int], bool] = lambda _: True,
) -> FeatureStore:
    """Return the store of a corpus's rows, one for each document, with what it lacks made now.

    Args:
        rows_per_shard: as that of the gradients beside which they are to stand.
        replace: discard the rows of another corpus instead of refusing them.
        advance: told the documents of each shard as it is done, and of those that were there.
        wanted: which shards are to be made here; all where left out.

    Raises:
        InputError: the directory holds rows of another corpus.

    Cost: reads the tokens of what is missing, one core; memory for one shard.
    """
    store = ngram_store(directory, corpus, rows_per_shard=rows_per_shard, replace=replace)
    missing = [shard for shard in store.missing() if wanted(shard)]
    advance(corpus.num_samples - sum(len(store.rows(shard)) for shard in missing))
    for shard in missing:
        documents = Documents.of(corpus, store.rows(shard))
        store.write(shard, ngram_shard(documents))
        advance(len(documents.tokens))
    return store


def ngram_store(directory: Path, corpus: Corpus, *, rows_per_shard: int, replace: bool = False) -> FeatureStore:
    """Return the store of a corpus's rows, whatever is in it. Arguments and errors as of `ngrams_of`."""
    return FeatureStore(
        directory,
        num_samples=corpus.num_samples,
        sketch_size=NGRAM_SIZE,
        fingerprint={"data": corpus.fingerprint, "ngrams": _VERSION},
        rows_per_shard=rows_per_shard,
        replace=replace,
    )


def ngram_shard(documents: Documents) -> ShardRows:
    """Return the rows of one shard: there is no loss, and all are of one length."""
    count = len(documents.tokens)
    return ShardRows(
        features=ngram_rows(documents.tokens).astype(np.float16),
        samples=documents.samples,
        losses=np.zeros(count),
        norms=np.ones(count),
    )


def _mix(numbers: NDArray[np.uint64], spare: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalise as SplitMix64 does (Steele et al., OOPSLA 2014), in place: every bit depends on every other."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        np.bitwise_xor(numbers, np.right_shift(numbers, np.uint64(shift), out=spare), out=numbers)
        if factor is not None:
            np.multiply(numbers, np.uint64(factor), out=numbers)
    return numbers
