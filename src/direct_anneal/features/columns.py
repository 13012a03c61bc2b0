"""A store of a few numbers for every document: shards of float64 columns, each committed by a record written last.

N documents, n of one shard. It lies where features lie, and keeps the same promises as their store: a shard is there
whole or counts as missing, whatever is damaged is found by its sha256, and shards of another fingerprint are refused.

    columns.json             header: format, num_samples, rows_per_shard, columns, fingerprint
    columns-00000.parquet    id, and the columns; a number that is not finite is stored as it is
    columns-00000.json       record: shard, store (sha256 of the header), rows, bytes, sha256
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.errors import InputError, option
from direct_anneal.features.storage import Directory, Place, place_at, read_table
from direct_anneal.features.verification import Finding
from direct_anneal.io.atomic import TEMPORARY_SUFFIX
from direct_anneal.io.digests import sha256
from direct_anneal.io.records import RecordError, checked, parse, sealed, unsealed

FORMAT = 1
HEADER = "columns.json"
ROWS_PER_SHARD = 1024

_HEADER_TYPES = {"format": int, "num_samples": int, "rows_per_shard": int, "columns": list, "fingerprint": dict}

_ANEW = "run select again, it computes just this shard"


class ColumnStore:
    """Columns for N documents under one fingerprint: opened where they exist, else created.

    Args:
        directory: where they lie, or shall lie: a path, or a URL that fsspec opens.
        num_samples: N.
        columns: their names.
        fingerprint: what the numbers depend on, as plain JSON values.
        rows_per_shard: n; the last shard holds what remains.
        replace: discard a store of another fingerprint instead of refusing it.

    Raises:
        InputError: the directory holds columns of another fingerprint.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        num_samples: int,
        columns: tuple[str, ...],
        fingerprint: Mapping[str, Any],
        rows_per_shard: int = ROWS_PER_SHARD,
        replace: bool = False,
    ) -> None:
        header = {
            "format": FORMAT,
            "num_samples": num_samples,
            "rows_per_shard": rows_per_shard,
            "columns": list(columns),
            "fingerprint": dict(fingerprint),
        }
        self._take(directory, header)
        found = _read_json(self._place, HEADER)
        if found is not None and found != json.loads(json.dumps(self._header)):
            if not replace:
                raise InputError(
                    subject=str(directory),
                    must="hold columns of this run",
                    got=f"but they are of another ({_difference(found, self._header)})",
                    do=f"choose another {option('out')}, or pass {option('overwrite')} to compute them anew",
                )
            self._discard()
            found = None
        if found is None:
            self._place.write(HEADER, json.dumps(self._header, indent=1, sort_keys=True).encode())
        for leftover in fnmatch.filter(self._place.names(), "columns*" + TEMPORARY_SUFFIX):
            self._place.remove(leftover)

    @classmethod
    def open(cls, directory: Path | str) -> ColumnStore:
        """Return the store that lies there, whatever its fingerprint. Reads the header alone, and writes nothing.

        Raises:
            InputError: there is none that can be read.
        """
        header = _header_at(place_at(directory))
        if header is None:
            raise InputError(
                subject=str(directory),
                must=f"hold columns of format {FORMAT}",
                got="but there are none that can be read",
                do="run select first",
            )
        store = cls.__new__(cls)  # nothing may be written: the run can be somebody else's, or under way
        store._take(directory, header)
        return store

    def _take(self, directory: Path | str, header: dict[str, Any]) -> None:
        """Be the store that this header describes."""
        self.directory, self._place = directory, place_at(directory)
        self._header, self._digest = header, _digest_of(header)
        self.num_samples: int = header["num_samples"]
        self._rows_per_shard: int = header["rows_per_shard"]
        self.columns: tuple[str, ...] = tuple(header["columns"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self._header["fingerprint"]))
        return found

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self._rows_per_shard)

    def rows(self, shard: int) -> range:
        """Return the positions in the corpus that a shard holds."""
        first = shard * self._rows_per_shard
        return range(first, min(first + self._rows_per_shard, self.num_samples))

    def files(self, shard: int) -> list[str]:
        """Return the names of a shard's files, the record that vouches for it last."""
        return [_name(shard, "parquet"), _name(shard, "json")]

    def beside(self) -> list[str]:
        """Return the names of the files beside the shards."""
        return [HEADER, *fnmatch.filter(sorted(self._place.names()), "columns.*.json")]

    def missing(self) -> list[int]:
        """Return shards to compute: never committed, or damaged since. Cost: reads every committed shard once."""
        return [shard for shard in range(self.num_shards) if _damage(self._place, self._digest, self._header, shard)]

    def write(self, shard: int, ids: pa.Array, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Commit one shard. Killed at any moment, the shard is either there whole or counts as missing.

        Args:
            ids: of its documents, (n,).
            values: each column, (n,).
        """
        count = len(self.rows(shard))
        if len(ids) != count or set(values) != set(self.columns) or any(len(v) != count for v in values.values()):
            raise ValueError(f"shard {shard} has {count} rows of {', '.join(self.columns)}")
        table = pa.table({"id": ids, **{name: pa.array(values[name], pa.float64()) for name in self.columns}})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = memoryview(sink.getvalue())
        record = {
            "shard": shard,
            "store": self._digest,
            "rows": count,
            "bytes": len(content),
            "sha256": sha256(content),
        }
        self._place.write(_name(shard, "parquet"), content)
        self._place.write(_name(shard, "json"), json.dumps(record, indent=1).encode())

    def read(self, shard: int | None = None) -> dict[str, NDArray[np.float64]]:
        """Return every column, of one shard or whole, (N,). What is read must be committed."""
        return self._values(self._tables(list(self.columns), range(self.num_shards) if shard is None else [shard]))

    def read_with_ids(self) -> tuple[pa.Array, dict[str, NDArray[np.float64]]]:
        """Return the ids of all documents and every column, (N,). Every shard must be committed."""
        tables = self._tables(["id", *self.columns], range(self.num_shards))
        return pa.concat_tables(tables)["id"].combine_chunks(), self._values(tables)

    def _tables(self, columns: list[str], shards: Iterable[int]) -> list[pa.Table]:
        return [read_table(self.directory, self._place, _name(shard, "parquet"), columns) for shard in shards]

    def _values(self, tables: list[pa.Table]) -> dict[str, NDArray[np.float64]]:
        return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in self.columns}

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a small record beside the shards, for whoever goes on."""
        self._place.write(f"columns.{name}.json", json.dumps(sealed(content), indent=1).encode())

    def kept(self, name: str) -> dict[str, Any] | None:
        """Return a record that `keep` wrote, if there is one and it is whole."""
        return _kept(self._place, f"columns.{name}.json")

    def _discard(self) -> None:
        """Remove a store's own files, records first, and nothing else that may lie there."""
        names = self._place.names()
        for pattern in ("columns-*.json", "columns-*.parquet", "columns.*.json", HEADER):
            for name in fnmatch.filter(names, pattern):
                self._place.remove(name)


def verify_columns(directory: Path) -> Iterator[Finding]:
    """Yield everything amiss in the columns that lie there, by shard. Nothing is written. Cost: reads them once."""
    place = Directory(directory)
    header = _header_at(place)
    if header is None:
        yield Finding(directory, f"{HEADER} cannot be read as format {FORMAT}", "run select again, it writes it anew")
        return
    names = place.names()
    for name in fnmatch.filter(sorted(names), "columns.*.json"):
        if _kept(place, name) is None:
            yield Finding(directory / name, "was changed since it was written", "run select again, it computes it anew")
    count, there = -(-header["num_samples"] // header["rows_per_shard"]), len(names)
    if count > there:
        yield Finding(directory, f"not all of {count:,} shards are there", _ANEW)
    for shard in range(min(count, there)):
        if wrong := _damage(place, _digest_of(header), header, shard):
            yield Finding(directory, f"shard {shard}: {wrong}", _ANEW)


def _header_at(place: Place) -> dict[str, Any] | None:
    """Read the header of our format; None where there is none that can be one."""
    try:
        header = checked(_read_json(place, HEADER) or {}, _HEADER_TYPES)
    except RecordError:
        return None
    is_named = all(isinstance(name, str) for name in header["columns"])
    is_one = header["format"] == FORMAT and header["num_samples"] >= 0 < header["rows_per_shard"] and is_named
    return header if is_one else None


def _name(shard: int, suffix: str) -> str:
    return f"columns-{shard:05d}.{suffix}"


def _digest_of(header: Mapping[str, Any]) -> str:
    return sha256(json.dumps(header, sort_keys=True, separators=(",", ":")))


def _damage(place: Place, digest: str, header: Mapping[str, Any], shard: int) -> str | None:
    """Return why a shard does not count; None where it is there, whole, and this store's."""
    record = _read_json(place, _name(shard, "json"))
    if record is None:
        return f"{_name(shard, 'json')} is not there, or no record"
    first = shard * header["rows_per_shard"]
    rows = min(header["rows_per_shard"], header["num_samples"] - first)
    if record.get("store") != digest or record.get("shard") != shard or record.get("rows") != rows:
        return f"{_name(shard, 'json')} is of another store"
    try:
        content = place.read(_name(shard, "parquet"))
    except FileNotFoundError:
        return f"{_name(shard, 'parquet')} is not there"
    if len(content) != record.get("bytes") or sha256(content) != record.get("sha256"):
        return f"{_name(shard, 'parquet')} has other bytes than its record says"
    return None


def _read_json(place: Place, name: str) -> dict[str, Any] | None:
    """Read an object; None where there is none that can be read."""
    try:
        content = parse(place.read(name))
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _kept(place: Place, name: str) -> dict[str, Any] | None:
    try:
        return unsealed(_read_json(place, name) or {})
    except RecordError:
        return None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the fields in which two headers differ."""
    inputs = found.get("fingerprint")
    there, here = {**found, **(inputs if isinstance(inputs, dict) else {})}, {**wanted, **wanted["fingerprint"]}
    keys = [key for key in {**here, **there} if key != "fingerprint" and there.get(key) != here.get(key)]
    return ", ".join(keys) or "its fingerprint"
