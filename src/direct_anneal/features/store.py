"""The feature store: a directory of immutable shards, each committed by a small record written last.

N samples, R sketch size, n rows of one shard. docs/format.md says what the files hold; features/verification.py what
makes a shard count.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.errors import InputError, option
from direct_anneal.features.rows import StoredRows
from direct_anneal.features.storage import Place, place_at, read_table
from direct_anneal.features.verification import (
    ASIDE,
    ASIDE_TYPES,
    BATCHES,
    HEADER,
    QUARANTINED,
    REMARKS,
    BlockedError,
    DamagedError,
    Header,
    check_shard,
    damages,
    file_name,
    is_of,
    make_record,
    read_aside,
)
from direct_anneal.io.atomic import TEMPORARY_SUFFIX
from direct_anneal.io.records import RecordError, parse, sealed

ROWS_PER_SHARD = 1024

# The records before what they vouch for.
_OWN = ("features-*.json", "features-*.npy", "features-*.parquet", *ASIDE, HEADER)

Fingerprint = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The rows of one shard before they are written.

    Attributes:
        features: unit rows, shape (n, R); zero rows where loss or norm is not finite.
        samples: the corpus index's rows: id, source, row, domain, num_tokens.
        losses, norms: shape (n,), float64; NaN (stored as null) or infinite where the model gave that.
    """

    features: NDArray[np.float16]
    samples: pa.Table
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]

    @property
    def reasons(self) -> list[str | None]:
        """Label gradients that are not finite: "nan" or "infinite"; None for the others."""
        return not_finite(self.losses, self.norms)


class FeatureStore:
    """A store for `num_samples` rows under one fingerprint: opened where it exists, else created.

    Args:
        directory: where it lies, or shall lie: a path, or a URL that fsspec opens.
        num_samples: N.
        sketch_size: R.
        fingerprint: what the features depend on (model, data, projection, seed), as plain JSON values.
        rows_per_shard: n, the last shard holds what remains.
        replace: discard a store of another fingerprint instead of refusing it.

    Raises:
        InputError: the directory holds a store of another fingerprint; both are named. A header that is lost or
            unreadable is written anew where no record there is of another store.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        num_samples: int,
        sketch_size: int,
        fingerprint: Fingerprint,
        rows_per_shard: int = ROWS_PER_SHARD,
        replace: bool = False,
    ) -> None:
        self.directory = directory
        self._place = place_at(directory)
        self.header = Header(
            num_samples=num_samples, sketch_size=sketch_size, rows_per_shard=rows_per_shard, fingerprint=fingerprint
        )
        if self._place.blocked(HEADER):
            raise InputError(f"{directory}/{HEADER} must be a file, but is a directory: move it away, run select again")
        difference = _difference(self._place, self.header)
        if difference is not None:
            if not replace:
                raise InputError(
                    f"{directory} holds features of another run ({difference}): choose another {option('out')}, or "
                    "pass "
                    f"{option('overwrite')} to compute them anew"
                )
            self._discard()
        if _header(self._place) is None:
            self._place.write(HEADER, json.dumps(self.header.content, indent=2, sort_keys=True).encode())
        self.sweep()

    def sweep(self) -> None:
        """Remove what was being written by those who are gone. Nobody may be at work in the directory."""
        for leftover in fnmatch.filter(self._place.names(), "*" + TEMPORARY_SUFFIX):
            self._place.remove(leftover)

    @classmethod
    def open(cls, directory: Path | str) -> FeatureStore:
        """Return the complete store that lies there, whatever its fingerprint. Cost: reads it once.

        Raises:
            InputError: there is none, or shards are missing or damaged.
        """
        store = cls.open_partial(directory)
        records = len(fnmatch.filter(store._place.names(), "features-*.json"))
        # A forged header can name more shards than could be looked at in a lifetime.
        missing = range(records, store.num_shards) if records < store.num_shards else store.missing()
        if missing:
            raise InputError(
                f"all features must be there, but of {store.num_shards:,} shards in {directory} {len(missing):,} are "
                "missing or damaged: run select again, it goes on where it stopped"
            )
        return store

    @classmethod
    def open_partial(cls, directory: Path | str) -> FeatureStore:
        """Return the store that lies there, whichever of its shards are. Reads the header alone, and writes nothing.

        Raises:
            InputError: there is none.
        """
        try:
            header = Header.read(place_at(directory))
        except (OSError, DamagedError) as error:
            raise InputError(
                f"features must lie in {directory}, but there are none that can be read ({error}): run select first"
            ) from error
        store = cls.__new__(cls)  # nothing may be written: the run can be somebody else's, or under way
        store.directory, store._place, store.header = directory, place_at(directory), header
        return store

    @property
    def fingerprint(self) -> Fingerprint:
        return self.header.fingerprint

    @property
    def num_shards(self) -> int:
        return self.header.num_shards

    def rows(self, shard: int) -> range:
        """Return the positions in the corpus that a shard holds."""
        return self.header.rows(shard)

    def files(self, shard: int) -> list[str]:
        """Return names of a shard's files, the record last."""
        return [file_name(shard, suffix) for suffix in ("npy", "parquet", "json")]

    def beside(self) -> list[str]:
        """Return names of the files that are there beside the shards."""
        return sorted({HEADER, *ASIDE} & set(self._place.names()))

    def missing(self) -> list[int]:
        """Return shards to compute: never committed, or damaged since. Cost: reads every committed shard once.

        Raises:
            InputError: a directory stands where a file must be written.
        """
        found = []
        for shard, error in damages(self._place, self.header):
            if isinstance(error, BlockedError):
                raise InputError(f"{self.directory}: {error}: {error.remedy}")
            found.append(shard)
        return found

    def holds(self, shard: int) -> bool:
        """True if a shard is there and whole. Cost: reads it once."""
        try:
            check_shard(self._place, self.header, shard)
        except DamagedError:
            return False
        return True

    def write(self, shard: int, content: ShardRows) -> None:
        """See `write_shard`."""
        write_shard(self._place, self.header, shard, content)

    def features(self) -> Sequence[StoredRows | NDArray[np.float16]]:
        """Return all rows, a block for each shard, in the corpus's order; in memory where the store lies at a URL.
        Every shard must be committed."""
        size = self.header.sketch_size
        shapes = [(len(self.rows(shard)), size) for shard in range(self.num_shards)]
        return [self._place.rows(file_name(shard, "npy"), shape) for shard, shape in enumerate(shapes)]

    def samples(self) -> pa.Table:
        """Return all sidecars as one table of N rows. Every shard must be committed.

        Raises:
            InputError: one is no table, though its digest is right.
        """
        names = (file_name(shard, "parquet") for shard in range(self.num_shards))
        return pa.concat_tables(read_table(self.directory, self._place, name) for name in names)

    def fetched(
        self, directory: Path, *, replace: bool = False, advance: Callable[[int], object] = lambda _: None
    ) -> FeatureStore:
        """Return a copy in a directory, complete as this one must be. What is there and whole is not fetched again.

        Args:
            replace: discard a store of another fingerprint that lies there.
            advance: told how many shards are there.

        Raises:
            InputError: it holds a store of another fingerprint.
        """
        copy = FeatureStore(
            directory,
            num_samples=self.header.num_samples,
            sketch_size=self.header.sketch_size,
            fingerprint=self.fingerprint,
            rows_per_shard=self.header.rows_per_shard,
            replace=replace,
        )
        advance(self.num_shards - len(lacking := copy.missing()))
        for shard in lacking:
            for suffix in ("npy", "parquet", "json"):
                name = file_name(shard, suffix)
                copy._place.write(name, self._place.read(name))
            advance(1)
        for name in set(ASIDE) & set(self._place.names()):
            copy._place.write(name, self._place.read(name))
        return copy

    def _discard(self) -> None:
        """Remove a store's own files, and nothing else that may lie there."""
        names = self._place.names()
        for pattern in _OWN:
            for name in fnmatch.filter(names, pattern):
                self._place.remove(name)

    def remember(self, remarks: list[str]) -> None:
        """Keep what should be said of these features whenever they are used."""
        kept = self.remarks()
        content = [*kept, *(remark for remark in remarks if remark not in kept)]
        self._keep(REMARKS, {"remarks": content})

    def remarks(self) -> list[str]:
        """Read the remarks kept by `remember`, in order."""
        kept = self._kept(REMARKS)
        return [] if kept is None else [str(remark) for remark in kept["remarks"]]

    def keep_batch_tokens(self, asked: int | None, used: int) -> None:
        """Keep the size of batches for whoever goes on, so that bytes do not depend on interruptions."""
        self._keep(BATCHES, {"asked": asked, "used": used})

    def batch_tokens(self, asked: int | None) -> int | None:
        """Return the size that was kept for this request, if any."""
        kept = self._kept(BATCHES)
        return kept["used"] if kept is not None and kept["asked"] == asked and kept["used"] > 0 else None

    def list_quarantined(self, samples: pa.Table) -> None:
        """Write quarantined.jsonl, a line of JSON for every row."""
        self._place.write(QUARANTINED, self.quarantine_lines(samples).encode("ascii"))

    @staticmethod
    def quarantine_lines(samples: pa.Table) -> str:
        """Return the listing that `list_quarantined` writes."""
        return "".join(json.dumps(row) + "\n" for row in samples.to_pylist())

    def _keep(self, name: str, content: dict[str, Any]) -> None:
        self._place.write(name, json.dumps(sealed(content)).encode())

    def _kept(self, name: str) -> dict[str, Any] | None:
        """Return a record beside the shards; None where there is none.

        Raises:
            InputError: it is damaged.
        """
        try:
            return read_aside(self._place, name, ASIDE_TYPES[name])
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise InputError(
                f"{self.directory}/{name} {error}: remove it, and run select again; what it said of batches or slow "
                "layers is found anew"
            ) from error


def write_shard(place: Place, header: Header, shard: int, content: ShardRows) -> None:
    """Commit one shard. Killed at any moment, the shard is either there whole or counts as missing.

    Raises:
        ValueError: the rows are not those of this shard.
        OSError: the disk is full, or worse; what was committed before stays.
    """
    shape = (len(header.rows(shard)), header.sketch_size)
    if content.features.shape != shape or content.features.dtype != np.float16:
        raise ValueError(
            f"shard {shard} has float16 rows of shape {shape}, got features of shape {content.features.shape} and "
            f"dtype {content.features.dtype}"
        )
    table = content.samples
    for name, values in (("loss", content.losses), ("grad_norm", content.norms)):
        table = table.append_column(name, pa.array(values, from_pandas=True))  # NaN is no number: null
    table = table.append_column("reason", pa.array(content.reasons, pa.string()))
    array, sidecar = BytesIO(), BytesIO()
    np.save(array, content.features, allow_pickle=False)
    pq.write_table(table, sidecar, compression="zstd")
    files = {file_name(shard, "npy"): array.getbuffer(), file_name(shard, "parquet"): sidecar.getbuffer()}
    for name, buffer in files.items():
        place.write(name, buffer)
    place.write(file_name(shard, "json"), json.dumps(make_record(header, shard, files), indent=2).encode())


def not_finite(losses: NDArray[np.float64], norms: NDArray[np.float64]) -> list[str | None]:
    """Label gradients that are not finite: "nan" or "infinite"; None for the others."""
    sums = np.abs(losses) + np.abs(norms)
    return ["nan" if np.isnan(value) else "infinite" if np.isinf(value) else None for value in sums]


def _difference(place: Place, header: Header) -> str | None:
    """Return in which fields the header that lies there differs from the one wanted; None where there is no other
    store's.

    A header that is lost or cannot be read is no difference where every record there is of the store wanted.
    """
    found = _header(place)
    if found is None:
        return None if is_of(place, header) else f"its {HEADER} cannot be read, and shards are not of this run"
    stored, wanted = {**found, **found["fingerprint"]}, {**header.content, **header.fingerprint}
    keys = [key for key in {**wanted, **stored} if key != "fingerprint"]
    differing = [key for key in keys if stored.get(key) != wanted.get(key)]
    return (
        "; ".join(f"{key}: there {_short(stored.get(key))}, now {_short(wanted.get(key))}" for key in differing) or None
    )


def _header(place: Place) -> dict[str, Any] | None:
    """Return the content of a header, be it of another format; None where there is none, or none that can be read."""
    try:
        content = parse(place.read(HEADER))
        return content if isinstance(content["fingerprint"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:14] + "…" + text[-3:]
