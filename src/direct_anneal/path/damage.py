"""Signs of damage in a document's own tokens: it repeats itself, many others say the same, its order means nothing.

N documents, T tokens of one.

Any training lowers the loss of loops and lists of words, and the target's as much as any other: so the drop along a
path is drawn to them. Three signs tell them from text, each a share in [0, 1]:

    repeated    of its tokens, in runs of 8 that it has had before: a phrase over and over
    common      of its tokens, in runs of 8 that at least 4 documents of the pool have: menus, notices, templates
    order       chance that the same words in random order are read worse than it: near 1 for text, anything for what
                has no order, shuffled text and lists of words

Source: ours; docs/path.md has what they catch and what they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from direct_anneal.data import Corpus
from direct_anneal.io.digests import short_digest

RUN = 8  # tokens
FEWEST_DOCUMENTS = 4
HEAD_TOKENS = 128  # of a document, whose order is looked at
FEWEST_HEAD_TOKENS = 8  # below, its order cannot be told
_FEWEST_WORDS = 5  # nor below: most shuffles of so few would be like the text

_MOST_SHUFFLES = 8
_TOKENS_A_WORD = 8  # where a word has more, there are no words: pieces of 4 tokens are shuffled
# Not single tokens: two that a tokenizer would have merged never follow each other, except where they are shuffled.
_TOKENS_A_PIECE = 4
# Standard deviation of a shuffled document's loss over shuffles, as a share of it: 0.02 to 0.05 at 20 to 128 tokens.
# What a document's own shuffles say of it counts beside this as another so many of them.
_DEVIATION, _DEVIATION_COUNTS = 0.03, 4

_SLOTS_PER_TOKEN = 4
_BLOCK_TOKENS = 2**15  # whose runs are numbered at once
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio
# How a piece begins that begins a word. Not by a line's end: text whose words were shuffled between spaces keeps words
# together that stood on both sides of one, and is read better with them than with all of its words shuffled.
_SPACES = ("Ġ", "▁", " ")

Tokens = NDArray[np.int64]


def repeated_share(tokens: Tokens) -> float:
    """Share of the tokens in runs of 8 that stand in the document before, too. Cost: O(T log T)."""
    return _covered(_again(_runs(tokens)), len(tokens))


def repetition(
    pool: Corpus, advance: Callable[[int], object] = lambda _: None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each document's tokens in runs of 8 that it has had before, and that at least 4 documents of the pool
    have, (N,) each.

    For the second, runs are counted by hash in a table of at least 4 places a token, up to 2³²: two that share a place
    are counted as one, which makes a share too large by a quarter of the runs that rare chance, at most.

    Args:
        advance: told each document twice.

    Cost: reads the tokens twice; memory 4 bytes a token of the pool.
    """
    places = 1 << min(32, int(_SLOTS_PER_TOKEN * max(1, int(pool.num_tokens.sum()))).bit_length())
    mask, counts = np.uint64(places - 1), np.zeros(places, dtype=np.uint8)
    repeated, common = np.zeros(pool.num_samples), np.zeros(pool.num_samples)
    for row, runs, length in _with_runs(pool):
        repeated[row] = _covered(_again(runs), length)
        own = np.sort(runs & mask)
        own = own[np.append(own[1:] != own[:-1], True)[: len(own)]]
        counts[own] += counts[own] < FEWEST_DOCUMENTS
        advance(1)
    for row, runs, length in _with_runs(pool):
        common[row] = _covered(counts[runs & mask] >= FEWEST_DOCUMENTS, length)
        advance(1)
    return repeated, common


def _with_runs(pool: Corpus) -> Iterator[tuple[int, NDArray[np.uint64], int]]:
    """Yield each document's position, runs and tokens; many documents are numbered at once."""
    ends = np.cumsum(pool.num_tokens)
    first = 0
    while first < pool.num_samples:
        begun = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, begun + _BLOCK_TOKENS, side="right")))
        contents = [pool.tokens(row) for row in range(first, end)]
        runs, start = _runs(np.concatenate(contents)), 0
        for row, tokens in enumerate(contents, first):
            yield row, runs[start : start + max(0, len(tokens) - RUN + 1)], len(tokens)
            start += len(tokens)
        first = end


def word_starts(tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Mark the tokens that begin a word, (V,): those whose piece begins with a space, as tokenizers mark it."""
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(min(vocab_size, len(tokenizer)))))
    starts = np.zeros(vocab_size, dtype=bool)
    starts[: len(pieces)] = [piece is not None and piece.startswith(_SPACES) for piece in pieces]
    return starts


def num_shuffles(head_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the shuffles of heads of these lengths: as many as have 128 tokens together, at least 1 and at most 8."""
    counts: NDArray[np.int64] = np.clip(HEAD_TOKENS // np.maximum(head_tokens, 1), 1, _MOST_SHUFFLES)
    return counts


def shuffles(head: Tokens, starts: NDArray[np.bool_], name: str) -> list[Tokens]:
    """Shuffle the words of a document's head by a hash of `name`, several times; the first word stays.

    In text without spaces pieces of 4 tokens are shuffled. None of fewer than 5 words or pieces, whose order cannot be
    told.
    """
    words = _words(head, starts)
    if len(words) < _FEWEST_WORDS:
        return []
    seed = int.from_bytes(short_digest(name, 8), "little")
    generator = np.random.Generator(np.random.Philox(key=seed))
    in_order, orders = np.arange(len(words) - 1), list[NDArray[np.int64]]()
    count = int(num_shuffles(np.array(len(head))))
    while len(orders) < count:
        order = generator.permutation(len(in_order))
        if not np.array_equal(order, in_order):
            orders.append(order)
    return [np.concatenate([words[0], *(words[1 + place] for place in order)]) for order in orders]


def _words(head: Tokens, starts: NDArray[np.bool_]) -> list[Tokens]:
    begins = starts[head].copy()
    if begins.sum() * _TOKENS_A_WORD < len(head):
        begins[:] = np.arange(len(head)) % _TOKENS_A_PIECE == 0
    if len(begins):
        begins[0] = True  # which may be a mark
    return np.split(head, np.flatnonzero(begins)[1:])


def order_chances(
    nats: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    count: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the chance Φ(z) that another shuffle of each document is read worse than it, (N,); NaN where none is read.

    z = (1 − ℓ / m) / √(s² (1 + 1/r)): ℓ is the document's loss, m the mean over its r shuffles, s their deviation as a
    share of m. If the document is one shuffle more, z is of mean 0 and deviation 1.

    Args:
        nats: of each head in its own order, (N,).
        mean, deviation: of the nats of its shuffles, (N,); with one shuffle the deviation is not looked at.
        count: r, (N,).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        own = (count - 1) * (deviation / mean) ** 2
        variance = (own + _DEVIATION_COUNTS * _DEVIATION**2) / (count - 1 + _DEVIATION_COUNTS)
        chances: NDArray[np.float64] = ndtr((1 - nats / mean) / np.sqrt(variance * (1 + 1 / count)))
    return chances


def _again(runs: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the runs that have come before."""
    order = np.argsort(runs, kind="stable")
    along = runs[order]
    again = np.zeros(len(runs), dtype=bool)
    again[order[1:][along[1:] == along[:-1]]] = True
    return again


def _runs(tokens: Tokens) -> NDArray[np.uint64]:
    """Number each run of 8 tokens, (T − 7,); the same wherever that run stands."""
    count = max(0, len(tokens) - RUN + 1)
    numbers = np.zeros(count, np.uint64)
    for offset in range(RUN):
        numbers = _mixed((numbers + _GOLDEN) ^ tokens[offset : offset + count].astype(np.uint64))
    return numbers


def _covered(marked: NDArray[np.bool_], length: int) -> float:
    """Share of `length` tokens that lie in a marked run."""
    if not marked.any():
        return 0.0
    edges = np.zeros(length + 1, dtype=np.int64)
    places = np.flatnonzero(marked)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + RUN, -1)
    return float((np.cumsum(edges)[:length] > 0).mean())


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalise as SplitMix64 does (Steele et al., OOPSLA 2014): every bit depends on every other."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
