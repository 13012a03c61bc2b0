"""Likeness of the pool and the validation set: can their documents be told apart by their words?

Where they cannot, the pool is the target already, and there is little to choose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data import Corpus

LOOKED_AT = 2_000  # documents of each, in even steps
FEWEST = 50  # documents of each, of which something can be said
_MOST_TOKENS = 2_000  # of a document
_PRIOR = 0.5  # added to each count


def told_apart(pool: Corpus, validation: Corpus) -> float | None:
    """Return the chance that a validation document looks more like the validation set than one of the pool does.

    Naive Bayes on distinct tokens and pairs of neighbours: counted on one half of the documents, tried on the other,
    and the other way round. 0.5 is guessing. None where one side has fewer than `FEWEST` documents.

    Cost: seconds, at `LOOKED_AT` documents of each; memory for their tokens.
    """
    bags = [[_distinct(corpus, i) for i in _in_even_steps(corpus)] for corpus in (pool, validation)]
    if min(map(len, bags)) < FEWEST:
        return None
    of_validation = np.repeat([False, True], [len(each) for each in bags])
    half = np.concatenate([np.arange(len(each)) % 2 for each in bags])
    sizes = np.array([len(bag) for each in bags for bag in each])
    names, places = np.unique(np.concatenate([bag for each in bags for bag in each]), return_inverse=True)
    document = np.repeat(np.arange(len(sizes)), sizes)
    areas = []
    for tried in (0, 1):
        shown = half[document] != tried
        counts = [
            np.bincount(places[shown & (of_validation[document] == side)], minlength=len(names)) + _PRIOR
            for side in (False, True)
        ]
        odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
        scores = np.bincount(document, weights=odds[places]) / sizes
        areas.append(_area(scores[(half == tried) & ~of_validation], scores[(half == tried) & of_validation]))
    return float(np.mean(areas))


def _in_even_steps(corpus: Corpus) -> range:
    return range(0, corpus.num_samples, -(-corpus.num_samples // LOOKED_AT))


def _distinct(corpus: Corpus, place: int) -> NDArray[np.uint64]:
    """Return a document's distinct tokens and pairs of neighbours, as numbers."""
    tokens = np.asarray(corpus.tokens(place)[:_MOST_TOKENS], np.uint64) + np.uint64(1)
    return np.unique(np.concatenate([tokens, tokens[:-1] << np.uint64(32) | tokens[1:]]))


def _area(lower: NDArray[np.float64], higher: NDArray[np.float64]) -> float:
    """Return the share of pairs in which `higher` is above, equals counting half."""
    ordered = np.sort(lower)
    below, up_to = (np.searchsorted(ordered, higher, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(lower)))
