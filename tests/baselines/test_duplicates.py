"""Near-duplicates against Jaccard similarities counted on strings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from direct_anneal.baselines import duplicates
from direct_anneal.baselines.duplicates import THRESHOLD

WORDS = [f"w{i}" for i in range(200)]


def text(rng: random.Random, length: int = 80) -> list[str]:
    return rng.choices(WORDS, k=length)


def similarity(one: str, other: str) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split()))
    return len(a & b) / len(a | b)


def collection() -> tuple[list[str], list[str]]:
    """Thirty texts, each with a copy of which none to ten words were exchanged."""
    rng = random.Random(0)
    texts = []
    for number in range(30):
        words = text(rng)
        changed = list(words)
        for place in rng.sample(range(len(words)), number // 3):
            changed[place] = "other"
        texts += [" ".join(words), " ".join(changed)]
    return texts, [f"{i:03d}" for i in range(len(texts))]


def test_minhash_is_the_similarity_counted() -> None:
    texts, ids = collection()
    expected = [any(similarity(texts[i], texts[j]) >= THRESHOLD for j in range(i)) for i in range(len(texts))]
    assert 5 < sum(expected) < 25
    assert duplicates(texts, ids).tolist() == expected


def test_exact_is_equality_up_to_white_space() -> None:
    texts = ["a b", "a  b\n", "a b c", "A b", "a b"]
    assert duplicates(texts, list("abcde"), "exact").tolist() == [False, True, False, False, True]


def test_the_smallest_id_stays_in_any_order() -> None:
    texts, ids = collection()
    order = random.Random(1).sample(range(len(texts)), len(texts))
    turned = duplicates([texts[i] for i in order], [ids[i] for i in order])
    assert np.array_equal(duplicates(texts, ids)[order], turned)


@pytest.mark.parametrize("method", ["exact", "minhash"])
def test_short_texts_count_too(method: str) -> None:
    assert duplicates(["one", "one", "two words", "x"], list("abcd"), method).tolist() == [False, True, False, False]  # type: ignore[arg-type]
