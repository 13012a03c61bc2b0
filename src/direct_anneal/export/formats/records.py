"""JSON lines and Parquet: text as it was, for trainers that tokenise it themselves (torchtitan, TRL, Axolotl)."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.export.shards import MIB, Document, Exported, Format, Setting, Sharded, Writer

_ROW_GROUP_BYTES = 64 * 2**20


class _Lines:
    """part-00000.jsonl; a document's place is its line."""

    def __init__(self, path: Path) -> None:
        self.name = f"{path.name}.jsonl"
        self._file = path.with_name(self.name).open("wb")
        self._num_rows = 0

    def size(self, document: Document) -> int:
        return len(document.record) + 1

    def add(self, document: Document) -> int:
        self._file.write(document.record + b"\n")
        self._num_rows += 1
        return self._num_rows - 1

    def close(self) -> None:
        self._file.close()


class _Table:
    """part-00000.parquet; a document's place is its row. Memory: a row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.name = f"{path.name}.parquet"
        self._writer = pq.ParquetWriter(path.with_name(self.name), schema, compression="zstd")
        self._schema = schema
        self._held: list[dict[str, object]] = []
        self._held_bytes = 0
        self._num_rows = 0

    def size(self, document: Document) -> int:
        return len(document.record)

    def add(self, document: Document) -> int:
        self._held.append(json.loads(document.record))
        self._held_bytes += len(document.record)
        self._num_rows += 1
        if self._held_bytes >= _ROW_GROUP_BYTES:
            self._flush()
        return self._num_rows - 1

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_pylist(self._held, self._schema))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


def open_lines(directory: Path, setting: Setting) -> Writer:
    """Return a writer of JSON lines."""
    return Sharded(directory, setting.shard_bytes, _Lines)


def open_tables(directory: Path, setting: Setting) -> Writer:
    """Return a writer of Parquet, a column for each field of the records."""
    return Sharded(directory, setting.shard_bytes, lambda path: _Table(path, setting.schema))


def lines_snippet(exported: Exported) -> str:
    """Return a snippet for whatever reads with `datasets`."""
    return _snippet(exported, "json", "part-*.jsonl")


def tables_snippet(exported: Exported) -> str:
    """Return a snippet for whatever reads with `datasets`."""
    return _snippet(exported, "parquet", "part-*.parquet")


def _snippet(exported: Exported, loader: str, pattern: str) -> str:
    load, share = f'load_dataset("{loader}", data_files="{exported.out}/{pattern}", split="train")', exported.share
    if share == 1:
        return f"from datasets import load_dataset\n\ntrain = {load}\n"
    return f"""\
from datasets import interleave_datasets, load_dataset

chosen = {load}
stable = load_dataset("STABLE", split="train")  # the stable phase's own
train = interleave_datasets(  # shares of documents
    [chosen.select_columns(stable.column_names), stable],
    probabilities=[{share:g}, {1 - share:g}],
    seed=0,
    stopping_strategy="first_exhausted",
)
"""


FORMATS = {
    "jsonl": Format(
        holds="records",
        open=open_lines,
        snippet=lines_snippet,
        pasted_into="py",
        shard_bytes=512 * MIB,
        masks_prompts=True,
    ),
    "parquet": Format(
        holds="records",
        open=open_tables,
        snippet=tables_snippet,
        pasted_into="py",
        shard_bytes=512 * MIB,
        masks_prompts=True,
    ),
}
