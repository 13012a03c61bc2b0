"""Verification of a store: its header, its file names, and the checks of every shard.

N samples, R sketch size, n rows of one shard.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.features.storage import Directory, Place
from direct_anneal.io.digests import WORKERS, sha256
from direct_anneal.io.records import RecordError, checked, parse, unsealed

FORMAT = 3
HEADER = "store.json"
BATCHES, REMARKS, QUARANTINED = "batches.json", "remarks.json", "quarantined.jsonl"
ASIDE_TYPES: dict[str, dict[str, Any]] = {BATCHES: {"asked": (int, NoneType), "used": int}, REMARKS: {"remarks": list}}
ASIDE = (QUARANTINED, BATCHES, REMARKS)  # what a store may keep beside its shards

# Rounding to float16 moves a unit row's norm by a relative 2⁻¹¹ at most, and by 2⁻²⁵ √R where its entries are
# subnormal: together below this for every R up to 2²⁸.
_NORM_ATOL = 2.0**-10
_MOST_MISSING = 10_000  # shards that are told of one by one
_LONGEST_HEADER = 256  # bytes of an npy file before its values

_TEXT = (pa.string(), pa.large_string())
_COLUMNS = {
    "id": _TEXT,
    "source": _TEXT,
    "row": (pa.int64(),),
    "domain": _TEXT,
    "num_tokens": (pa.int64(),),
    "loss": (pa.float64(),),
    "grad_norm": (pa.float64(),),
    "reason": _TEXT,
}

_COMPUTE = "run select again, it computes just this shard"
_WRITE_HEADER = "run select again, it writes it anew where the shards are of the same run"


class DamagedError(ValueError):
    """A file of a store is not what it must be; says what is wrong, and what to do if that is more than to go on."""

    def __init__(self, wrong: str, remedy: str | None = None) -> None:
        super().__init__(wrong)
        self.remedy = remedy


class BlockedError(DamagedError):
    """A directory stands in the place of a file, so that no shard can be written there, either."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} must be a file, but is a directory", "move it away, and run select again")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a store, kept as store.json.

    Attributes:
        num_samples: N.
        sketch_size: R.
        rows_per_shard: n; the last shard holds what remains.
        fingerprint: what the features depend on, as plain JSON values.
    """

    num_samples: int
    sketch_size: int
    rows_per_shard: int
    fingerprint: Mapping[str, Any]

    @classmethod
    def read(cls, place: Place) -> Header:
        """Return the header that lies there.

        Raises:
            DamagedError: there is none, or none of this format.
        """
        try:
            if place.blocked(HEADER):
                raise BlockedError(HEADER)
            found = parse(place.read(HEADER))
        except FileNotFoundError as error:
            raise DamagedError(f"{HEADER} is not there") from error
        except RecordError as error:
            raise DamagedError(f"{HEADER} {error}") from error
        numbers = ("num_samples", "sketch_size", "rows_per_shard")
        if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), dict):
            raise DamagedError(f"{HEADER} holds no fingerprint")
        if found.get("format") != FORMAT:
            raise DamagedError(f"{HEADER} has format {json.dumps(found.get('format'))}, this version reads {FORMAT}")
        if not all(type(found.get(name)) is int and found[name] > 0 for name in numbers):
            raise DamagedError(f"{HEADER} must hold {', '.join(numbers)} above 0")
        return cls(fingerprint=found["fingerprint"], **{name: found[name] for name in numbers})

    @property
    def content(self) -> dict[str, Any]:
        """Convert to the JSON of store.json."""
        return {
            "format": FORMAT,
            "num_samples": self.num_samples,
            "sketch_size": self.sketch_size,
            "rows_per_shard": self.rows_per_shard,
            "fingerprint": dict(self.fingerprint),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of the content as JSON with sorted keys and no spaces: what every record of the store repeats."""
        return sha256(json.dumps(self.content, sort_keys=True, separators=(",", ":")))

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """Return the positions in the corpus that a shard holds."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.num_samples))


def file_name(shard: int, suffix: str) -> str:
    """Name one file of a shard: npy, parquet or json."""
    return f"features-{shard:05d}.{suffix}"


def make_record(header: Header, shard: int, files: Mapping[str, bytes | memoryview]) -> dict[str, Any]:
    """Return the commit record of a shard: its number, its store, and the size and digest of each file."""
    return {
        "shard": shard,
        "store": header.digest,
        "rows": len(header.rows(shard)),
        "files": {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in files.items()},
    }


def damages(place: Place, header: Header, *, norms: bool = False) -> Iterator[tuple[int, DamagedError]]:
    """Yield the shards that do not count, in order, with what is wrong: not there, not whole, or not this store's.

    Args:
        norms: also look at every row. That takes three times what the rest does, and finds nothing but shards that were
            written wrongly, since a record's sha256 covers all that happens to them afterwards.

    Cost: reads the store once, some shards at a time into memory.
    """

    def damage(shard: int) -> DamagedError | None:
        try:
            check_shard(place, header, shard, norms=norms)
        except DamagedError as error:
            return error
        return None

    pool = ThreadPoolExecutor(WORKERS)
    try:
        for shard, error in enumerate(pool.map(damage, range(header.num_shards))):
            if error is not None:
                yield shard, error
    finally:
        pool.shutdown(cancel_futures=True)


def check_shard(place: Place, header: Header, shard: int, *, norms: bool = False) -> None:
    """See that a shard is there, whole, and this store's. Cost: reads its files once, into memory.

    Args:
        norms: as for `damages`.

    Raises:
        DamagedError: it is not.
    """
    array, sidecar, committing = (file_name(shard, suffix) for suffix in ("npy", "parquet", "json"))
    for name in (array, sidecar, committing):
        if place.blocked(name):
            raise BlockedError(name)
    record = _record(place, header, shard)
    if not isinstance(record.get("files"), dict) or record["files"].keys() != {array, sidecar}:
        # Nothing that a record names is opened unless it is one of the two.
        named = ", ".join(map(str, record.get("files") or ())) or "none"
        raise DamagedError(f"its record must name {array} and {sidecar}, but names {named}")
    shape = (len(header.rows(shard)), header.sketch_size)
    rows = _array(array, _content(place, array, record["files"][array]), shape)
    _check_sidecar(sidecar, _content(place, sidecar, record["files"][sidecar]), shape[0])
    if norms:
        _check_norms(array, rows, f"remove {committing} there, and {_COMPUTE}")


def is_of(place: Place, header: Header) -> bool:
    """True if no readable record belongs to another store."""
    return all(record.get("store") == header.digest for record in _records(place))


@dataclass(frozen=True)
class Finding:
    """Something amiss in a store: where, what, and what to do; `harmless` where no feature suffers by it."""

    place: Path
    wrong: str
    remedy: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.wrong}: {self.remedy}"


def verify(directory: Path) -> Iterator[Finding]:
    """Yield everything amiss in the store that lies there, by shard. Nothing is written. Cost: reads the store once."""
    place = Directory(directory)
    try:
        header = Header.read(place)
    except DamagedError as error:
        yield Finding(directory, str(error), error.remedy or _WRITE_HEADER)
        return
    present = len(fnmatch.filter(place.names(), "features-*.json"))
    if header.num_shards > 2 * present + _MOST_MISSING:
        wrong = f"{present:,} of {header.num_shards:,} shards are there"
        yield Finding(directory, wrong, f"{_COMPUTE.replace('just this shard', 'the others')}")
        return
    for shard, damage in damages(place, header, norms=True):
        yield Finding(directory, f"shard {shard}: {damage}", damage.remedy or _COMPUTE)
    for name, types in ASIDE_TYPES.items():
        try:
            read_aside(place, name, types)
        except FileNotFoundError:
            continue
        except RecordError as error:
            yield Finding(directory, f"{name} {error}", "remove it, and run select again")
    own = {HEADER, *ASIDE}
    own |= {file_name(shard, suffix) for shard in range(header.num_shards) for suffix in ("npy", "parquet", "json")}
    for name in sorted(name for name in place.names() if name not in own):
        if name.endswith(".tmp"):
            yield Finding(directory, f"{name} was left half-written", "the next select removes it", harmless=True)
        else:
            yield Finding(directory, f"{name} is none of the store's", "nothing reads it, move it away", harmless=True)


def read_aside(place: Place, name: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record that a store keeps beside its shards.

    Earlier versions wrote them without a seal, remarks as a bare list: such a one must have these very members.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is damaged.
    """
    found = parse(place.read(name))
    if isinstance(found, list):
        found = {"remarks": found}
    if not isinstance(found, dict):
        raise RecordError("must be a JSON object")
    if found.keys() != types.keys():
        found = unsealed(found)
    return checked(found, types)


def _records(place: Place) -> Iterator[dict[str, Any]]:
    for name in fnmatch.filter(place.names(), "features-*.json"):
        try:
            record = parse(place.read(name))
        except (ValueError, OSError):
            continue
        if isinstance(record, dict):
            yield record


def _record(place: Place, header: Header, shard: int) -> dict[str, Any]:
    name = file_name(shard, "json")
    try:
        record = parse(place.read(name))
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is not there: lost, or never written") from error
    except RecordError as error:
        raise DamagedError(f"{name} {error}") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{name} is no record")
    if record.get("store") != header.digest:
        raise DamagedError(f"{name} is of another store: other model, data or settings")
    for key, wanted in (("shard", shard), ("rows", len(header.rows(shard)))):
        if record.get(key) != wanted:
            raise DamagedError(f"{name} must say {key} {wanted}, but says {json.dumps(record.get(key))}")
    return record


def _content(place: Place, name: str, expected: Any) -> bytes:
    """Return a file, if it is what its record says."""
    if not isinstance(expected, dict):
        raise DamagedError(f"its record says neither size nor sha256 of {name}")
    try:
        content = place.read(name)
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is not there") from error
    except RecordError as error:
        raise DamagedError(f"{name} {error}") from error
    if (size := len(content)) != expected.get("bytes"):
        raise DamagedError(f"{name} must have {expected.get('bytes')} bytes, but has {size}")
    if sha256(content) != expected.get("sha256"):
        raise DamagedError(f"{name} has another sha256 than its record")
    return content


def _array(name: str, content: bytes, shape: tuple[int, int]) -> NDArray[np.float16]:
    try:
        rows: NDArray[np.float16] = np.load(BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError) as error:
        raise DamagedError(f"{name} is no npy file") from error  # the header is Python that numpy parses
    if rows.dtype != np.float16 or rows.shape != shape:
        raise DamagedError(f"{name} must be float16 of shape {shape}, but is {rows.dtype} of {rows.shape}")
    if not rows.flags.c_contiguous or len(content) - rows.nbytes > _LONGEST_HEADER:
        raise DamagedError(f"{name} must hold its rows one after the other, and nothing else")
    return rows


def _check_norms(name: str, rows: NDArray[np.float16], remedy: str) -> None:
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    bad = np.flatnonzero(~((norms == 0) | (np.abs(norms - 1) <= _NORM_ATOL)))  # NaN is bad, too
    if len(bad):
        raise DamagedError(f"{name} must have rows of norm 1 or 0, but row {bad[0]} has {norms[bad[0]]:.4g}", remedy)


def _check_sidecar(name: str, content: bytes, num_rows: int) -> None:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        schema, found = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{name} is no Parquet file") from error
    if schema.names != list(_COLUMNS):
        raise DamagedError(f"{name} must have the columns {', '.join(_COLUMNS)}, but has {', '.join(schema.names)}")
    for column, types in _COLUMNS.items():
        kind = schema.field(column).type
        if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in types:
            raise DamagedError(f"{name} must have {column} of type {types[0]}, but has {kind}")
    if found != num_rows:
        raise DamagedError(f"{name} must have {num_rows} rows, but has {found}")
