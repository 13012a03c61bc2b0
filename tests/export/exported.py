"""Wanted and actual content of an export, read without the package."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq

from selection.tiny import byte_tokenizer

EOS = 2  # a Llama's, unless it says otherwise
FORMATS = ("hf", "jsonl", "parquet", "olmo-core", "megatron", "nanotron", "mds")
TOKENS = ("hf", "olmo-core", "megatron", "nanotron", "mds")


def expected(run: Path) -> dict[str, list[int]]:
    """The chosen documents' tokens by id, from the pool's own files as the run wrote them out again."""
    table = pq.read_table(run / "selection.parquet")
    selected = set(table.filter(table["selected"])["id"].to_pylist())
    records: list[dict[str, Any]] = []
    for name in json.loads((run / "manifest.json").read_text())["files"]:
        if name == "selected":
            records += datasets.load_from_disk(run / name).to_list()
        else:
            loader = "parquet" if name.endswith(".parquet") else "json"
            records += read_lines(run / name) if loader == "json" else pq.read_table(run / name).to_pylist()
    assert {record["id"] for record in records} == selected
    tokenizer = byte_tokenizer()
    return {record["id"]: record.get("input_ids") or tokenizer(record["text"])["input_ids"] for record in records}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines, compressed or not."""
    import gzip

    import pyarrow as pa

    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    elif path.suffix == ".zst":
        with pa.input_stream(str(path), compression="zstd") as stream:
            content = stream.read()
    return [json.loads(line) for line in content.splitlines()]


def provenance(out: Path) -> list[dict[str, Any]]:
    """Return each document's place, in the order in which they were written."""
    rows: list[dict[str, Any]] = pq.read_table(out / "provenance.parquet").to_pylist()
    return rows


def with_end(tokens: list[int]) -> list[int]:
    """Join tokens for a trainer that cuts windows out of documents end to end."""
    return tokens if tokens[-1] == EOS else [*tokens, EOS]


def by_place(out: Path, to: str) -> dict[str, list[int]]:
    """Each document's tokens by id, from where the provenance says it lies."""
    found = {}
    for row in provenance(out):
        path, place, length = out / row["file"], row["place"], row["num_tokens"]
        if to == "mds":
            tokens = [token for shard in sorted(out.glob("*.mds")) for token in mds_tokens(shard)]
            place += sum(len(mds_tokens(shard)) for shard in out.glob("*.mds") if shard.name < path.name)
        elif to == "hf":
            with path.open("rb") as stream:
                import pyarrow as pa

                tokens, place = pa.ipc.open_stream(stream).read_all()["input_ids"][place].as_py(), 0
        else:
            tokens = np.fromfile(path, "<u2").tolist()
        found[row["id"]] = tokens[place : place + length]
    return found


def mds_tokens(path: Path) -> list[int]:
    """The tokens of a shard's samples, joined."""
    raw = path.read_bytes()
    count = int(np.frombuffer(raw, "<u4", 1)[0])
    bounds = np.frombuffer(raw, "<u4", count + 1, 4)
    tokens: list[int] = []
    for start, stop in itertools.pairwise(bounds):
        sample = raw[start:stop]
        assert int.from_bytes(sample[:4], "little") == len(sample) - 4
        width = {0: 1, 1: 2}[sample[4] & 3]
        assert sample[4] >> 2 == 1
        length = int.from_bytes(sample[5 : 5 + width], "little")
        values = np.frombuffer(sample, "<u2", offset=5 + width).tolist()
        assert len(values) == length
        tokens += values
    return tokens
