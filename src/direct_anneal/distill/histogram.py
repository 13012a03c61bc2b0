"""Scores counted in bins: sums of histograms are the histogram of all, however a pool was divided.

A bin holds the float32 numbers whose leading 18 bits, in the order of numbers, are equal: its width is between 2⁻⁹ and
2⁻¹⁰ of the numbers in it, wherever they lie.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.io.atomic import replacing, temporary_name

BIN_BITS = 18
_SHIFT = np.uint32(32 - BIN_BITS)
_SIGN = np.uint32(0x80000000)
_HELD_ROWS = 2**18  # in memory
_GROUP_ROWS = 2**16
_MOST_RUNS = 64  # files that are open at once

SCHEMA = pa.schema([("domain", pa.string()), ("bin", pa.uint32()), ("documents", pa.int64()), ("size", pa.int64())])
_ORDER = [("domain", "ascending"), ("bin", "ascending")]


def keys_of(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers in the order of the scores, one for each, (n,); −0 is 0."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint32)


def score_of(key: int) -> float:
    """Return the score that has this key."""
    ordered = np.array([key], dtype=np.uint32)
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).astype(np.uint32)
    return float(bits.view(np.float32)[0])


def bins_of(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bin of each score, (n,); larger scores have larger ones."""
    return keys_of(scores) >> _SHIFT


def first_key(bin: int) -> int:
    """Return the least key in a bin."""
    return bin << int(_SHIFT)


def lower_edge(bin: int) -> float:
    """Return the least number in a bin."""
    return score_of(first_key(bin))


def counted(
    domains: NDArray[np.int64], names: list[str], scores: NDArray[np.float32], sizes: NDArray[np.int64]
) -> pa.Table:
    """Count documents and their sizes by domain and bin.

    Args:
        domains: place in `names` of each document's, (n,).
        scores, sizes: (n,).

    Returns:
        a table of `SCHEMA`, by name and bin.
    """
    keys = domains.astype(np.uint64) << np.uint64(32) | bins_of(scores).astype(np.uint64)
    found, place = np.unique(keys, return_inverse=True)
    totals = np.zeros(len(found), dtype=np.int64)
    np.add.at(totals, place, sizes)
    table = pa.table(
        {
            "domain": pa.array([names[key >> 32] for key in found.tolist()], pa.string()),
            "bin": (found & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            "documents": np.bincount(place, minlength=len(found)).astype(np.int64),
            "size": totals,
        },
        schema=SCHEMA,
    )
    return table.sort_by(_ORDER)


def added(tables: Iterable[pa.Table]) -> pa.Table:
    """Add histograms, in the same order. Cost: O(rows), as long as the sum has few of them."""
    held: list[pa.Table] = [SCHEMA.empty_table()]
    for table in tables:
        held.append(table)
        if sum(map(len, held)) - len(held[0]) >= _HELD_ROWS:
            held = [_summed(held)]
    return _summed(held).sort_by(_ORDER)


def relabelled(tables: Iterable[pa.Table], names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the same with null for the domain of all but these."""
    kept = pa.array(names, pa.string())
    for table in tables:
        domains = table["domain"]
        named = pc.if_else(pc.is_in(domains, value_set=kept), domains, pa.scalar(None, pa.string()))
        yield table.set_column(0, SCHEMA.field("domain"), named)


def stored(path: Path) -> Iterator[pa.Table]:
    """Read the histogram in a file, by and by."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def write_whole(tables: Iterable[pa.Table], path: Path, max_domains: int) -> dict[str, tuple[int, int]] | None:
    """Write the histogram of a pool, by domain; beyond `max_domains` all are one, of null.

    A file's name is the domain of documents that name none: there can be as many as files.

    Returns:
        documents and size of each domain; None if there are too many.

    Memory: _HELD_ROWS rows, however many tables and domains: what exceeds them is merged on disk, beside `path`.
    """
    totals: dict[str, tuple[int, int]] = {}
    spilled = temporary_name(path)
    spilled.mkdir()
    try:
        held, runs = list[pa.Table](), list[Path]()
        for table in tables:
            if len(totals) <= max_domains:
                _count(table, totals)
            held += [table] if len(totals) <= max_domains else relabelled([table], ())
            if sum(map(len, held)) >= _HELD_ROWS:
                held = [_summed(held)]
                if len(held[0]) >= _HELD_ROWS // 2:
                    runs, held = _spill(spilled, runs, held[0].sort_by(_ORDER)), []
        if len(totals) > max_domains:
            found = (table for source in (held, *map(stored, runs)) for table in relabelled(source, ()))
            merged: Iterable[pa.Table] = [added(found)]
        else:
            merged = _merged([*map(stored, runs), [added(held)]])
        with replacing(path) as temporary:
            _write(merged, temporary)
    finally:
        shutil.rmtree(spilled, ignore_errors=True)
    return totals if len(totals) <= max_domains else None


def _count(table: pa.Table, totals: dict[str, tuple[int, int]]) -> None:
    """Add a table's documents and sizes to those of its domains."""
    sums = table.group_by("domain", use_threads=False).aggregate([("documents", "sum"), ("size", "sum")])
    for name, documents, size in zip(*(sums[field].to_pylist() for field in sums.column_names), strict=True):
        before = totals.get(name, (0, 0))
        totals[name] = before[0] + documents, before[1] + size


def _spill(directory: Path, runs: list[Path], table: pa.Table) -> list[Path]:
    """Write a sorted table; when there are many such runs, make them one."""
    path = directory / f"{len(list(directory.iterdir()))}.parquet"
    if len(runs) < _MOST_RUNS:
        _write([table], path)
        return [*runs, path]
    _write(_merged([*map(stored, runs), [table]]), path)
    return [path]


def _merged(runs: Sequence[Iterable[pa.Table]]) -> Iterator[pa.Table]:
    """Add runs that are sorted, domain after domain."""
    parts = heapq.merge(*map(_by_domain, runs), key=itemgetter(0))
    for _, group in groupby(parts, key=itemgetter(0)):
        tables = [table for _, table in group]
        yield tables[0] if len(tables) == 1 else _summed(tables).sort_by(_ORDER)


def _by_domain(tables: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    for table in tables:
        names = table["domain"].combine_chunks()
        changes = np.flatnonzero(pc.not_equal(names[1:], names[:-1])) + 1
        for start, end in pairwise(sorted({0, *changes.tolist(), len(names)})):
            yield names[start].as_py(), table.slice(start, end - start)


def _write(tables: Iterable[pa.Table], path: Path) -> None:
    """Write in groups of rows that depend on the rows alone."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(held), row_group_size=_GROUP_ROWS)
                held = []
        if held:
            writer.write_table(pa.concat_tables(held), row_group_size=_GROUP_ROWS)


def _summed(tables: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by(["domain", "bin"], use_threads=False)
    sums = grouped.aggregate([("documents", "sum"), ("size", "sum")])
    return sums.select(["domain", "bin", "documents_sum", "size_sum"]).rename_columns(SCHEMA.names).cast(SCHEMA)
