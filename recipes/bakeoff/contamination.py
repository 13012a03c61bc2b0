"""Overlap between a pool and what models are scored on, counted in runs of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORDS = (8, 13)  # lengths of runs: 13 as GPT-3 counted; 8 finds more, and more of it is chance
_WORD = re.compile(r"\w+")


def overlap(pool: Iterable[str], scored: list[str], length: int) -> float:
    """The share of the scored texts with at least one run of `length` words that stands in the pool.

    Texts that are shorter than that count as found where they stand in the pool as a whole, from 5 words on.
    """
    runs = [set(_runs(text, length)) for text in scored]
    wanted = {run for each in runs for run in each}
    lengths = {len(run) for run in wanted}
    found: set[tuple[str, ...]] = set()
    for text in pool:
        words = _words(text)
        for size in lengths:
            found.update(run for run in zip(*(words[k:] for k in range(size)), strict=False) if run in wanted)
    return sum(not each.isdisjoint(found) for each in runs) / max(1, len(runs))


def _runs(text: str, length: int) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    size = min(length, len(words))
    if size >= 5:
        for start in range(len(words) - size + 1):
            yield tuple(words[start : start + size])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
