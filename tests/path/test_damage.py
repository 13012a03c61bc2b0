"""Signs of damage: what they see, against literal counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus_samples import prepared
from direct_anneal.path.damage import FEWEST_DOCUMENTS, RUN, common_shares, repeated_share, shuffled, word_starts
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


def test_common_shares_are_a_literal_count(tmp_path: Path) -> None:
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
    assert common_shares(pool).tolist() == pytest.approx(wanted)
    assert max(wanted) == 1.0


def test_words_are_shuffled_whole_and_the_first_stays() -> None:
    tokenizer = byte_tokenizer()
    starts = word_starts(tokenizer, 300)
    text = "so it goes on and on until the end of it"
    tokens = np.array(tokenizer(text)["input_ids"], dtype=np.int64)
    mixed = shuffled(tokens, starts, "some id")
    words = tokenizer.decode(mixed).split(" ")
    assert sorted(words) == sorted(text.split(" "))
    assert words != text.split(" ")
    assert words[0] == "so"
    assert np.array_equal(mixed, shuffled(tokens, starts, "some id"))
    assert not np.array_equal(mixed, shuffled(tokens, starts, "another"))
    assert len(shuffled(np.zeros(0, np.int64), starts, "")) == 0
