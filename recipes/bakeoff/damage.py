"""Damaged copies of passages, as web pools are full of."""

from __future__ import annotations

import random
from typing import Any

KINDS = ("shuffled", "random", "looping", "boilerplate")  # equal shares
PHRASE_WORDS = 12


def damaged(records: list[dict[str, Any]], count: int, salt: str) -> list[dict[str, Any]]:
    """`count` damaged copies of random passages: words shuffled, random words, one phrase over and over, boilerplate.

    Each kind is a domain of its own, so that what an arm took of it can be counted.
    """
    rng = random.Random(salt)
    vocabulary = sorted({word for record in records[:500] for word in record["text"].split()})
    boilerplate = [" ".join(rng.choices(vocabulary, k=40)) for _ in range(4)]
    made = []
    for number in range(count):
        kind, words = KINDS[number % len(KINDS)], rng.choice(records)["text"].split(" ")
        if kind == "shuffled":
            rng.shuffle(words)
        elif kind == "random":
            words = rng.choices(vocabulary, k=len(words))
        elif kind == "looping":
            start = rng.randrange(max(1, len(words) - PHRASE_WORDS))
            phrase = words[start : start + PHRASE_WORDS]
            words = (phrase * (len(words) // len(phrase) + 1))[: len(words)]
        else:
            words = [*(rng.choice(boilerplate).split(" ") * 3), *words[:10]]
        made.append({"id": f"damaged/{kind}/{number}", "domain": kind, "text": " ".join(words)})
    return made
