"""Shared by the tests of corpora: a tokenizer that counts, files in every format, and `prepare` with small defaults."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.data import Corpus, Fields, expand, prepare

FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")
VOCAB_SIZE = 256


class ByteTokenizer:
    """Bytes as tokens; `texts` keeps every text that it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> Mapping[str, Any]:
        self.texts += texts
        return {"input_ids": [list(text.encode("utf-8")) for text in texts]}


def prepared(
    directory: Path, *patterns: Path | str, tokenizer: Callable[..., Any] | None = None, **options: Any
) -> Corpus:
    """The corpus of the patterns under the byte tokenizer, in `directory`."""
    defaults: dict[str, Any] = {
        "role": "pool",
        "fields": Fields(),
        "load_tokenizer": lambda: tokenizer or ByteTokenizer(),
        "tokenizer_fingerprint": "bytes",
        "vocab_size": VOCAB_SIZE,
        "max_length": 1000,
        "directory": directory,
    }
    sources = expand([str(pattern) for pattern in patterns], role="pool", cache=directory.parent / "fetched")
    return prepare(sources, **(defaults | options))


def texts(corpus: Corpus) -> list[str]:
    """The documents, back from their tokens."""
    return [bytes(corpus.tokens(i).tolist()).decode("utf-8") for i in range(corpus.num_samples)]


def write_lines(path: Path, lines: Sequence[bytes]) -> Path:
    """A JSONL file from raw lines, compressed as its name says."""
    content = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(content)
    return path


def write_records(directory: Path, name: str, format: str, records: Sequence[Mapping[str, Any]]) -> Path:
    """The records as `directory/name` in the format; returns the path to name to `expand`."""
    directory.mkdir(exist_ok=True)
    if format == "arrow":
        datasets.Dataset.from_list([dict(record) for record in records]).save_to_disk(directory / name, num_shards=2)
        return directory / name
    path = directory / f"{name}.{format}"
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist([dict(record) for record in records]), path, row_group_size=3)
        return path
    return write_lines(path, [json.dumps(record).encode() for record in records])
