"""Hashed token n-gram features: rows of unit length beside the gradients.

n documents of a shard, T tokens of one, L places of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.features.documents import Documents
from direct_anneal.features.store import ROWS_PER_SHARD, FeatureStore, ShardRows

NGRAM_SIZE = 1024  # L
_VERSION = 1  # of what a row holds
_ORDERS = (1, 2)
_PLACES = 4  # of an n-gram in a row: two n-grams that share one seldom share more
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio


def ngram_row(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The document's distinct tokens and pairs of neighbours, each as log(1 + count) with random signs at four places.

    A random projection of its vector of log counts, of unit length: inner products of rows are, up to noise of about
    1/√L, the cosines of those vectors.

    Args:
        tokens: shape (T,), at least one.

    Returns:
        shape (L,), the same on every machine.

    Source: feature hashing, Weinberger et al., ICML 2009; several places as in sparse random projections, Kane and
    Nelson, JACM 2014. Cost: O(T log T).
    """
    found = [_hashed(tokens, order) for order in _ORDERS if order <= len(tokens)]
    ngrams, counts = np.unique(np.concatenate(found), return_counts=True)
    weights, row = np.log1p(counts), np.zeros(NGRAM_SIZE)
    for place in range(1, _PLACES + 1):
        bits = _mixed(ngrams + np.uint64(place * _GOLDEN % 2**64))
        signs = np.where(bits & np.uint64(1), 1.0, -1.0)
        row += np.bincount((bits >> np.uint64(1)) % np.uint64(NGRAM_SIZE), weights * signs, NGRAM_SIZE)
    length = np.linalg.norm(row)
    return row / length if length > 0 else row


def ngrams_of(
    directory: Path,
    corpus: Corpus,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    replace: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> FeatureStore:
    """The store of a corpus's rows, one for each document, with what it lacks made now.

    Args:
        rows_per_shard: as that of the gradients beside which they are to stand.
        replace: discard the rows of another corpus instead of refusing them.
        advance: told the documents of each shard as it is done, and of those that were there.

    Raises:
        InputError: the directory holds rows of another corpus.

    Cost: reads the tokens, one core; memory for one shard.
    """
    store = FeatureStore(
        directory,
        num_samples=corpus.num_samples,
        sketch_size=NGRAM_SIZE,
        fingerprint={"data": corpus.fingerprint, "ngrams": _VERSION},
        rows_per_shard=rows_per_shard,
        replace=replace,
    )
    missing = store.missing()
    advance(corpus.num_samples - sum(len(store.rows(shard)) for shard in missing))
    for shard in missing:
        documents = Documents.of(corpus, store.rows(shard))
        count = len(documents.tokens)
        rows = np.stack([ngram_row(tokens) for tokens in documents.tokens])
        # There is no loss, and all rows are of one length.
        store.write(
            shard,
            ShardRows(
                features=rows.astype(np.float16),
                samples=documents.samples,
                losses=np.zeros(count),
                norms=np.ones(count),
            ),
        )
        advance(count)
    return store


def _hashed(tokens: NDArray[np.int64], order: int) -> NDArray[np.uint64]:
    """A number for each run of so many tokens."""
    count = len(tokens) - order + 1
    numbers = np.full(count, order, np.uint64)
    for offset in range(order):
        numbers = _mixed((numbers + np.uint64(_GOLDEN)) ^ tokens[offset : offset + count].astype(np.uint64))
    return numbers


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): every bit depends on every other."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
