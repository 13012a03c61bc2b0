"""Parquet files of documents."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.data.formats.layout import TokenLayout
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.data.formats.schemas import common_schema
from direct_anneal.data.formats.tables import batch_records, count_rows, read_batches
from direct_anneal.io.atomic import replacing

# Rows reach a table in portions of this many bytes: a row group for every few chosen rows would make slow files.
_PORTION_BYTES = 64 * 2**20


class Table(Format):
    """Tables, common to Parquet files and saved datasets: rows in Arrow's record batches."""

    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        """Read all records; of the columns only those that are wanted are read."""
        for first_row, batch in read_batches(path, self.name, columns=columns):
            for row, record in enumerate(batch_records(batch), start=first_row):
                yield row, BadRecord(record) if isinstance(record, str) else record

    def records_at(
        self, path: Path, layout: TokenLayout | None, rows: np.ndarray, columns: Collection[str]
    ) -> Iterator[tuple[int, Record]]:
        """Read the records at these rows; of Parquet only the row groups that hold these rows are read."""
        for first_row, batch in read_batches(path, self.name, columns=columns, rows=rows):
            start, stop = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
            for row in rows[start:stop].tolist():
                (record,) = batch_records(batch.slice(row - first_row, 1))
                yield row, BadRecord(record) if isinstance(record, str) else record

    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        return float(count_rows(path, self.name))

    def check_alike(self, paths: Sequence[Path]) -> None:
        """Check that the columns' types agree; see `Format.check_alike`. Cost: opens each file."""
        common_schema(paths, self.name)

    def portions(self, choices: Sequence[Choice], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the chosen rows, all columns, in tables of about 64 MiB."""
        return _portions(self._chosen_batches(choices, schema))

    def _chosen_batches(self, choices: Sequence[Choice], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for choice in choices:
            rows = choice.rows
            for first_row, batch in read_batches(choice.path, self.name, rows=rows):
                start, stop = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
                if start < stop:
                    yield _conformed(batch.take(pa.array(rows[start:stop] - first_row)), schema)
            choice.check_unchanged()


class Parquet(Table):
    """`.parquet`, every column and type kept."""

    name = "parquet"
    suffixes = (".parquet",)

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        path = directory / self.output
        schema = common_schema([choice.path for choice in choices], self.name)
        with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for portion in self.portions(choices, schema):
                writer.write_table(portion)
        return [path]


def _portions(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        held.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= _PORTION_BYTES:
            yield pa.Table.from_batches(held).combine_chunks()
            held, num_bytes = [], 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    names = batch.schema.names
    arrays = [
        batch.column(field.name).cast(field.type) if field.name in names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
