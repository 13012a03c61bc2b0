"""Cost of rows of n-grams beside tokenising, and beside a loop over documents with numpy's calls for each."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data.formats.streams import read_lines
from direct_anneal.features.ngrams import _GOLDEN, _PLACES, NGRAM_SIZE, _mix, ngram_rows

SHARED = Path(__file__).parents[2] / "shared" / "data" / "corpus"


def one_by_one(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The row of one document, as it was made before documents went together."""

    def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return _mix(numbers, np.empty_like(numbers))

    found = []
    for order in (1, 2):
        numbers = np.full(len(tokens) - order + 1, order, np.uint64)
        for offset in range(order):
            numbers = mixed((numbers + np.uint64(_GOLDEN)) ^ tokens[offset : offset + len(numbers)].astype(np.uint64))
        found.append(numbers)
    ngrams, counts = np.unique(np.concatenate(found), return_counts=True)
    weights, row = np.log1p(counts), np.zeros(NGRAM_SIZE)
    for place in range(1, _PLACES + 1):
        bits = mixed(ngrams + np.uint64(place * _GOLDEN % 2**64))
        signs = np.where(bits & np.uint64(1), 1.0, -1.0)
        row += np.bincount((bits >> np.uint64(1)) % np.uint64(NGRAM_SIZE), weights * signs, NGRAM_SIZE)
    length = float(np.linalg.norm(row))
    return row / length if length > 0 else row


def microseconds(work: Callable[[], object], count: int) -> float:
    """Processor time for each of `count` documents, the least of three calls."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken) / count * 10**6


def documents(lengths: tuple[int, ...], count: int) -> dict[str, list[NDArray[np.int64]]]:
    """Documents whose tokens are as frequent as words are; and words of real text, where that lies beside."""
    rng = np.random.default_rng(0)
    drawn = {
        f"{length:,} tokens": [np.minimum(rng.zipf(1.2, length), 50_000).astype(np.int64) for _ in range(count)]
        for length in lengths
    }
    words: dict[str, int] = {}
    real = []
    for path in sorted(SHARED.glob("*.jsonl.zst"))[:8]:
        for number, (_, line) in enumerate(read_lines(path, "zstd")):
            if number == count // 4:
                break
            text = json.loads(line or b"{}").get("text", "").split()
            real.append(np.array([words.setdefault(word, len(words)) for word in text], dtype=np.int64))
    if real := [tokens for tokens in real if len(tokens) > 1]:
        drawn[f"real text, {np.mean([len(tokens) for tokens in real]):.0f} words"] = real
    return drawn


def main() -> None:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    options = parser.parse_args()
    for name, drawn in documents((100, 250, 1000), options.documents).items():
        before = [one_by_one(tokens) for tokens in drawn]
        assert np.stack(before).tobytes() == ngram_rows(drawn).tobytes(), "the rows differ"
        loop = microseconds(partial(lambda of: [one_by_one(tokens) for tokens in of], drawn), len(drawn))
        together = microseconds(partial(ngram_rows, drawn), len(drawn))
        print(f"{name:24} loop {loop:7.1f} µs a document, together {together:6.1f}: {loop / together:.1f} times faster")


if __name__ == "__main__":
    main()
