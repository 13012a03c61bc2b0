"""The test of order in two steps: against a literal one, and what it reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.path.damage import shuffles
from direct_anneal.path.documents import Tokens
from direct_anneal.path.order import DECIDED, OPENING_TOKENS, Order, most_tokens

STARTS = np.ones(1000, dtype=bool)
ONE_WORD = ~STARTS  # then pieces are shuffled
LENGTHS = (0, 5, 8, 30, 48, 49, 100, 128, 128, 128)
UNKNOWN = np.full(len(LENGTHS), np.nan)


def documents() -> tuple[list[Tokens], list[str]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(1000)[:length] for length in LENGTHS], [f"id {place}" for place in range(len(LENGTHS))]


def loss(text: Tokens) -> float:
    """Nats that depend on the order, by up to a fifth."""
    return len(text) * (1 + 0.2 * float(np.sin(np.arange(len(text)) * text.astype(float)).mean())) if len(text) else 0.0


class Reader:
    """Reads texts and counts their tokens; the first tokens of some documents are read far better than any shuffle."""

    def __init__(self, clear: Sequence[Tokens]) -> None:
        self.clear, self.tokens = {text[:length].tobytes() for text in clear for length in (48, len(text))}, 0

    def __call__(self, texts: Sequence[Tokens]) -> NDArray[np.float64]:
        self.tokens += sum(map(len, texts))
        return np.array([0.5 * loss(text) if text.tobytes() in self.clear else loss(text) for text in texts])


def chance(own: float, mixed: list[float]) -> float:
    mean, r = statistics.mean(mixed), len(mixed)
    squares = sum((each / mean - 1) ** 2 for each in mixed)
    z = (1 - own / mean) / math.sqrt((squares + 4 * 0.03**2) / (r + 3) * (1 + 1 / r))
    return statistics.NormalDist().cdf(z)


@pytest.mark.parametrize("knows", [False, True])
def test_the_opening_decides_or_the_whole_beginning_does(knows: bool) -> None:
    heads, names = documents()
    read = Reader([heads[6], heads[8]])
    openings = [head[:OPENING_TOKENS] for head in heads]
    known = [np.where([len(head) > 8 for head in heads], read(texts), np.nan) for texts in (openings, heads)]
    order = Order(heads, names, STARTS, *(known if knows else (UNKNOWN, UNKNOWN)))
    read.tokens = 0
    found = order.chances(read)
    used, wanted, tokens = read.tokens, [], 0
    for head, name in zip(heads, names, strict=True):
        opening, value = head[:OPENING_TOKENS], math.nan
        if len(head) > OPENING_TOKENS:
            value = chance(*read([opening]), read(shuffles(opening, STARTS, name)[:1]).tolist())
            tokens += 48 + 48 * (not knows)
        if len(head) >= 8 and not value >= DECIDED:
            mixed = shuffles(head, STARTS, name)
            value = chance(*read([head]), read(mixed).tolist())
            tokens += len(head) * (len(mixed) + (not knows or len(head) == 8))
        wanted.append(value)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert [number for number, value in enumerate(found) if value >= DECIDED] == [6, 8]
    assert used == tokens
    assert used < order.num_tokens <= most_tokens(np.array(LENGTHS), knows).sum()


@pytest.mark.parametrize(
    ("head", "starts", "is_known"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], {0, 5}, False),  # two words
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], {0, 3, 5, 8}, False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], {0, 3, 5, 7, 8}, True),
        (list(range(16)), {0}, False),  # four pieces of a text without spaces
        (list(range(17)), {0}, True),
    ],
)
def test_the_order_of_few_words_is_unknown(head: list[int], starts: set[int], is_known: bool) -> None:
    begins = np.array([token in starts for token in range(1000)])
    order = Order([np.array(head)], ["id"], begins, UNKNOWN[:1], UNKNOWN[:1])
    assert np.isfinite(order.chances(Reader([]))).all() == is_known


def test_few_shuffled_documents_pass() -> None:
    """Losses as of a 1 M model: their deviation over shuffles is larger for short texts."""
    rng = np.random.default_rng(0)
    heads = [np.arange(128)] * 1000

    def nats(texts: Sequence[Tokens]) -> NDArray[np.float64]:
        lengths = np.array(list(map(len, texts)))
        return lengths * (5 + 5 * np.where(lengths > 48, 0.033, 0.044) * rng.normal(size=len(texts)))

    unknown = np.full(1000, np.nan)
    found = Order(heads, list(map(str, range(1000))), ONE_WORD, unknown, unknown).chances(nats)
    assert (found >= 0.93).mean() < 0.11  # 0.089 by the second step alone, of a deviation that is not the assumed one
    assert (found >= DECIDED).mean() < 0.03


def test_nothing_is_read_of_nothing() -> None:
    order = Order([np.zeros(0, np.int64)] * 2, ["a", "b"], STARTS, np.full(2, np.nan), np.full(2, np.nan))
    assert np.isnan(order.chances(lambda texts: 1 / 0)).all()  # type: ignore[arg-type, return-value]
    assert order.num_tokens == 0
