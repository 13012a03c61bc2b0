"""The test of order: a model reads each document's beginning, and the same with its words shuffled.

n documents of a shard, r shuffles of one.

In two steps, since most text shows its order soon. First the opening, against one shuffle of it. What that leaves open
is decided by the whole beginning, against all of its shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.path.damage import FEWEST_HEAD_TOKENS, num_shuffles, order_chances, shuffles
from direct_anneal.path.documents import Tokens

OPENING_TOKENS = 48
DECIDED = 0.99865  # chance from which the opening is enough, three deviations: few shuffled openings come so far

Nats = Callable[[Sequence[Tokens]], NDArray[np.float64]]
"""Nats of each text at θ_s, in batches that depend on these texts alone."""


def most_tokens(heads: NDArray[np.int64], is_known: bool) -> NDArray[np.int64]:
    """Count the tokens that are read at most for heads of these lengths, (n,).

    Args:
        is_known: True if their nats in their own order are known.
    """
    opened = np.where(heads > OPENING_TOKENS, OPENING_TOKENS, 0)
    own = 0 if is_known else heads + opened
    counted: NDArray[np.int64] = np.where(heads < FEWEST_HEAD_TOKENS, 0, own + opened + heads * num_shuffles(heads))
    return counted


@dataclass(frozen=True)
class Order:
    """Beginnings of n documents whose order is tested.

    Attributes:
        heads: beginning of each; of one below 8 tokens or 5 words the order cannot be told.
        names: ids of the documents, by whose hash their words are shuffled.
        starts: which tokens begin a word, (V,).
        opening_nats, head_nats: at θ_s, in their own order, (n,); NaN where they are to be computed.
    """

    heads: list[Tokens]
    names: list[str]
    starts: NDArray[np.bool_]
    opening_nats: NDArray[np.float64]
    head_nats: NDArray[np.float64]

    @property
    def num_tokens(self) -> int:
        """Count the tokens that are read at most."""
        return int(most_tokens(self._lengths, not np.isnan(self.head_nats).all()).sum())

    def chances(self, nats: Nats) -> NDArray[np.float64]:
        """Return the chance that a shuffle of each document is read worse than it, (n,); NaN where that is unknown."""
        chances = np.full(len(self.heads), np.nan)
        if (opened := self._lengths > OPENING_TOKENS).any():
            texts = [head[:OPENING_TOKENS] for head in self.heads]
            chances[opened] = self._compared(opened, texts, self.opening_nats, nats, most=1)
        left = (self._lengths >= FEWEST_HEAD_TOKENS) & ~(chances >= DECIDED)
        if left.any():
            chances[left] = self._compared(left, self.heads, self.head_nats, nats)
        return chances

    @property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array(list(map(len, self.heads)), dtype=np.int64)

    def _compared(
        self,
        wanted: NDArray[np.bool_],
        texts: Sequence[Tokens],
        known: NDArray[np.float64],
        nats: Nats,
        most: int | None = None,
    ) -> NDArray[np.float64]:
        """Return the chances of the wanted documents, by these beginnings and at most so many shuffles of each.

        NaN for those that have no shuffle.
        """
        mixed: dict[int, list[Tokens]] = {}
        for place in np.flatnonzero(wanted).tolist():
            if found := shuffles(texts[place], self.starts, self.names[place])[:most]:
                mixed[place] = found
        chances, places = np.full(len(texts), np.nan), list(mixed)
        if not places:
            return chances[wanted]
        count = np.array(list(map(len, mixed.values())))
        own, lacking = known[places], [place for place in places if np.isnan(known[place])]
        if lacking:
            own[np.isnan(own)] = nats([texts[place] for place in lacking])
        mean, deviation = _moments(nats([text for each in mixed.values() for text in each]), count)
        chances[places] = order_chances(own, mean, deviation, count)
        return chances[wanted]


def _moments(nats: NDArray[np.float64], count: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation over each document's shuffles, of which there are `count`, (n,)."""
    first = np.cumsum(count) - count
    mean = np.add.reduceat(nats, first) / count
    squares = np.add.reduceat((nats - np.repeat(mean, count)) ** 2, first)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))
