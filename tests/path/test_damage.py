"""Signs of damage: what they see, against literal counts."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus_samples import prepared
from direct_anneal.path import damage
from direct_anneal.path.damage import (
    FEWEST_DOCUMENTS,
    RUN,
    num_shuffles,
    order_chances,
    repeated_share,
    repetition,
    shuffles,
    word_starts,
)
from selection.tiny import byte_tokenizer, write_jsonl

RNG = np.random.default_rng(3)


def literal_share(tokens: Any, marked: set[tuple[int, ...]], *, again: bool = False) -> float:
    """Share of the tokens in runs that are marked, or that have come before."""
    covered, seen = set[int](), set[tuple[int, ...]]()
    for place in range(len(tokens) - RUN + 1):
        run = tuple(tokens[place : place + RUN])
        if run in (seen if again else marked):
            covered |= set(range(place, place + RUN))
        seen.add(run)
    return len(covered) / len(tokens)


@pytest.mark.parametrize(
    "tokens",
    [
        np.tile(np.arange(12), 10),
        np.arange(50),
        np.concatenate([np.arange(20), np.arange(15), np.arange(100, 120)]),
        RNG.integers(0, 2, 300),
        np.arange(5),
        np.zeros(1, np.int64),
        np.zeros(0, np.int64),
    ],
)
def test_repeated_share_is_a_literal_count(tokens: np.ndarray[Any, Any]) -> None:
    wanted = literal_share(tokens.tolist(), set(), again=True) if len(tokens) else 0.0
    assert repeated_share(tokens.astype(np.int64)) == pytest.approx(wanted)


def test_common_shares_are_a_literal_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notice = "all rights reserved by us "
    texts = [f"{notice}{word}" for word in ("one", "two two two two two", "three", "four")] + [
        "rights reserved once",
        notice,
    ]
    write_jsonl(tmp_path / "pool.jsonl", [{"id": str(row), "text": text} for row, text in enumerate(texts)])
    pool = prepared(tmp_path / "corpus", tmp_path / "pool.jsonl")
    runs = [{tuple(t[p : p + RUN]) for p in range(len(t) - RUN + 1)} for t in (list(x.encode()) for x in texts)]
    counts: dict[tuple[int, ...], int] = {}
    for own in runs:
        for run in own:
            counts[run] = counts.get(run, 0) + 1
    marked = {run for run, count in counts.items() if count >= FEWEST_DOCUMENTS}
    wanted = [literal_share(pool.tokens(row).tolist(), marked) for row in range(len(texts))]
    monkeypatch.setattr(damage, "_BLOCK_TOKENS", 60)  # two documents at once
    repeated, common = repetition(pool)
    assert common.tolist() == pytest.approx(wanted)
    assert repeated.tolist() == [repeated_share(pool.tokens(row)) for row in range(len(texts))]
    assert max(wanted) == 1.0


def test_words_are_shuffled_whole_and_the_first_stays() -> None:
    tokenizer = byte_tokenizer()
    starts = word_starts(tokenizer, 300)
    text = "so it goes on and on until the end of it"
    tokens = np.array(tokenizer(text)["input_ids"], dtype=np.int64)
    mixed = shuffles(tokens, starts, "some id")
    assert len(mixed) == num_shuffles(np.array([len(tokens)]))[0] == 3
    for each in mixed:
        words = tokenizer.decode(each).split(" ")
        assert sorted(words) == sorted(text.split(" "))
        assert words != text.split(" ")
        assert words[0] == "so"
    assert len({each.tobytes() for each in mixed}) == 3
    assert np.array_equal(mixed, shuffles(tokens, starts, "some id"))
    assert not np.array_equal(mixed, shuffles(tokens, starts, "another"))
    assert shuffles(np.zeros(0, np.int64), starts, "") == []


def test_no_shuffle_is_the_text_itself() -> None:
    words = np.arange(5)
    every = np.ones(300, dtype=bool)
    for name in map(str, range(200)):
        assert not any(np.array_equal(mixed, words) for mixed in shuffles(words, every, name))


def test_words_on_both_sides_of_a_line_end_stay_together() -> None:
    """Text that was shuffled between spaces has them still, so they are no sign of order."""
    tokenizer = byte_tokenizer()
    text = "an answer:\n46 to be\n\nsure is not a word"
    tokens = np.array(tokenizer(text)["input_ids"], dtype=np.int64)
    for each in shuffles(tokens, word_starts(tokenizer, 300), "some id"):
        assert sorted(tokenizer.decode(each).split(" ")) == sorted(text.split(" "))


def test_pieces_are_shuffled_where_there_are_no_words() -> None:
    tokens = np.arange(100, 200)
    (mixed,) = shuffles(tokens, np.zeros(300, dtype=bool), "some id")
    assert sorted(mixed) == tokens.tolist()
    assert mixed[0] == 100
    assert (mixed != tokens).sum() > 80
    assert (mixed.reshape(-1, 4) == mixed[::4, None] + np.arange(4)).all()


def test_few_documents_without_order_seem_to_have_one() -> None:
    """A document among its own shuffles: r + 1 draws of one distribution, whose deviation is not the assumed one."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 4, 8):
        for deviation in (0.02, 0.03, 0.04):
            nats = 50 * (1 + deviation * rng.normal(size=(20_000, count + 1)))
            rest = nats[:, 1:]
            own = rest.std(axis=1, ddof=1) if count > 1 else np.zeros(20_000)
            found = order_chances(nats[:, 0], rest.mean(axis=1), own, np.full(20_000, count))
            assert (found >= 0.93).mean() < 0.15
            assert deviation > 0.03 or (found >= 0.93).mean() < 0.08  # 0.07, five standard errors


def test_order_is_the_formula() -> None:
    nats, shuffled = 40.0, [50.0, 52.0, 47.0]
    mean = sum(shuffled) / 3
    squares = sum((each / mean - 1) ** 2 for each in shuffled)
    z = (1 - nats / mean) / math.sqrt((squares + 4 * 0.03**2) / 6 * (1 + 1 / 3))
    given = (np.array([nats]), np.array([mean]), np.array([np.std(shuffled, ddof=1)]), np.array([3]))
    assert order_chances(*given) == pytest.approx(statistics.NormalDist().cdf(z))
