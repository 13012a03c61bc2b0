"""Estimates of how much there is, from the beginnings of files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus_samples import FORMATS, VOCAB_SIZE, ByteTokenizer, prepared, write_lines, write_records
from direct_anneal.data import Fields, Part, expand, sample, sampling


def sampled(directory: Path, pattern: Path, **options: Any) -> Part:
    defaults: dict[str, Any] = {
        "num_records": 64,
        "role": "pool",
        "fields": Fields(),
        "load_tokenizer": ByteTokenizer,
        "tokenizer_fingerprint": "bytes",
        "vocab_size": VOCAB_SIZE,
        "max_length": 1000,
        "directory": directory,
    }
    return sample(expand([str(pattern)], role="pool"), **(defaults | options))


def records(count: int) -> list[dict[str, str]]:
    """Texts of 10 to 200 random digits, which compress evenly, to half."""
    rng = random.Random(0)
    return [{"text": rng.randbytes(rng.randint(5, 100)).hex()} for _ in range(count)]


@pytest.mark.parametrize("format", FORMATS)
def test_little_is_read_whole(tmp_path: Path, format: str) -> None:
    path = write_records(tmp_path / "pool", "part", format, records(20))
    part = sampled(tmp_path / "some", path)
    whole = prepared(tmp_path / "all", path)
    assert part.corpus.fingerprint == whole.fingerprint
    assert (part.num_samples, part.num_tokens) == (20, int(whole.num_tokens.sum()))
    assert part.num_bytes == sum(size for _, size, _ in whole.sources[0].state())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("counted", [1 << 20, 1 << 25])
def test_much_is_estimated(tmp_path: Path, format: str, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 64 records; their number from the first megabyte of several, or from all."""
    monkeypatch.setattr(sampling, "_COUNTED_BYTES", counted)
    texts = records(40_000)
    path = write_records(tmp_path / "pool", "part", format, texts)
    part = sampled(tmp_path / "some", path)
    assert part.corpus.num_samples == 64
    exact = counted == 1 << 25 or format in ("parquet", "arrow")
    assert exact or path.stat().st_size > 2 * counted
    # A codec reads some 64 kilobytes ahead of the lines that come of them, of a megabyte.
    assert part.num_samples == pytest.approx(len(texts), rel=1e-9 if exact else 0.15)
    # The mean of 64 lengths from 10 to 200: a standard error of 6.5 %, and three of them.
    mean = np.mean([len(text["text"]) for text in texts])
    assert part.num_tokens / part.num_samples == pytest.approx(mean, rel=0.2)


def test_what_cannot_be_used_does_not_count(tmp_path: Path) -> None:
    """Every fourth line is none."""
    lines = [b"{" if i % 4 == 0 else b'{"text": "some text"}' for i in range(2000)]
    part = sampled(tmp_path / "some", write_lines(tmp_path / "pool.jsonl", lines), num_records=400)
    assert part.num_samples == 1500
    assert part.num_tokens == 1500 * len("some text")


def test_of_many_files_some_are_read_and_stand_for_all(tmp_path: Path) -> None:
    """Ever longer files, of equal records: what is left out is known by its bytes."""
    for number in range(100):
        write_records(tmp_path / "pool", f"part-{number:02d}", "jsonl", [{"text": "x" * 50}] * (40 + number))
    part = sampled(tmp_path / "some", tmp_path / "pool")
    assert len(part.corpus.sources) == 32
    assert part.corpus.num_samples == 32 * 32
    assert part.num_samples == pytest.approx(sum(40 + number for number in range(100)), rel=1e-9, abs=0.5)


def test_files_of_different_kinds_of_documents_count_as_they_are(tmp_path: Path) -> None:
    write_records(tmp_path / "pool", "long", "jsonl", [{"text": "x" * 100}] * 100)
    write_records(tmp_path / "pool", "short", "jsonl.gz", [{"text": "x" * 10}] * 1000)
    part = sampled(tmp_path / "some", tmp_path / "pool")
    assert (part.num_samples, part.num_tokens) == (1100, 100 * 100 + 1000 * 10)
