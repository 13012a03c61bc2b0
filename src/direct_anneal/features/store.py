"""The feature store: a directory of immutable shards, each committed by a small record written last.

N samples, R sketch size, n rows of one shard. docs/format.md says what the files hold; features/checking.py what makes
a shard count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.durable import replacing
from direct_anneal.errors import InputError
from direct_anneal.features.checking import (
    ASIDE,
    HEADER,
    BlockedError,
    DamagedError,
    Header,
    damages,
    file_name,
    is_of,
    make_record,
)

ROWS_PER_SHARD = 1024

# The records before what they vouch for.
_OWN = ("features-*.json", "features-*.npy", "features-*.parquet", *ASIDE, HEADER)

Fingerprint = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """What one shard holds, before it is written.

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
        """Why each gradient is none: "nan" or "infinite"; None where it is one."""
        return not_finite(self.losses, self.norms)


class FeatureStore:
    """A store for `num_samples` rows under one fingerprint: opened where it exists, else created.

    Args:
        directory: where it lies, or shall lie.
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
        directory: Path,
        *,
        num_samples: int,
        sketch_size: int,
        fingerprint: Fingerprint,
        rows_per_shard: int = ROWS_PER_SHARD,
        replace: bool = False,
    ) -> None:
        self.directory = directory
        self.header = Header(
            num_samples=num_samples, sketch_size=sketch_size, rows_per_shard=rows_per_shard, fingerprint=fingerprint
        )
        path = directory / HEADER
        if path.is_dir():
            raise InputError(f"{path} must be a file, but is a directory: move it away, and run select again")
        difference = _difference(directory, self.header)
        if difference is not None:
            if not replace:
                raise InputError(
                    f"{directory} holds features of another run ({difference}): choose another --out, or pass "
                    "--overwrite to compute them anew"
                )
            self._discard()
        if not path.exists() or not _readable(path):
            directory.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(self.header.content, indent=2, sort_keys=True).encode())
        for leftover in directory.glob("*.tmp"):
            leftover.unlink()

    @classmethod
    def open(cls, directory: Path) -> FeatureStore:
        """The complete store that lies there, whatever its fingerprint. Cost: reads it once.

        Raises:
            InputError: there is none, or shards are missing or damaged.
        """
        try:
            header = Header.read(directory)
        except (OSError, DamagedError) as error:
            raise InputError(
                f"features must lie in {directory}, but there are none that can be read ({error}): run select first"
            ) from error
        store = cls(
            directory,
            num_samples=header.num_samples,
            sketch_size=header.sketch_size,
            fingerprint=header.fingerprint,
            rows_per_shard=header.rows_per_shard,
        )
        if missing := store.missing():
            raise InputError(
                f"all features must be there, but of {store.num_shards:,} shards in {directory} {len(missing):,} are "
                "missing or damaged: run select again, it goes on where it stopped"
            )
        return store

    @property
    def fingerprint(self) -> Fingerprint:
        return self.header.fingerprint

    @property
    def num_shards(self) -> int:
        return self.header.num_shards

    def rows(self, shard: int) -> range:
        """The positions in the corpus that a shard holds."""
        return self.header.rows(shard)

    def missing(self) -> list[int]:
        """Shards to compute: never committed, or damaged since. Cost: reads every committed shard once.

        Raises:
            InputError: a directory stands where a file must be written.
        """
        found = []
        for shard, error in damages(self.directory, self.header):
            if isinstance(error, BlockedError):
                raise InputError(f"{self.directory}: {error}: {error.remedy}")
            found.append(shard)
        return found

    def write(self, shard: int, content: ShardRows) -> None:
        """Commit one shard. Killed at any moment, the shard is either there whole or counts as missing.

        Raises:
            ValueError: the rows are not those of this shard.
            OSError: the disk is full, or worse; what was committed before stays.
        """
        shape = (len(self.rows(shard)), self.header.sketch_size)
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
            _write(self.directory / name, buffer)
        record = json.dumps(make_record(self.header, shard, files), indent=2)
        _write(self.directory / file_name(shard, "json"), record.encode())

    def features(self) -> list[NDArray[np.float16]]:
        """All rows as memory-mapped blocks, in the corpus's order. Every shard must be committed."""
        paths = [self.directory / file_name(shard, "npy") for shard in range(self.num_shards)]
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]

    def samples(self) -> pa.Table:
        """All sidecars as one table of N rows. Every shard must be committed."""
        paths = [self.directory / file_name(shard, "parquet") for shard in range(self.num_shards)]
        return pa.concat_tables(map(pq.read_table, paths))

    def _discard(self) -> None:
        """Remove a store's own files, and nothing else that may lie there."""
        for pattern in _OWN:
            for path in self.directory.glob(pattern):
                path.unlink()

    def remember(self, remarks: list[str]) -> None:
        """Keep what should be said of these features whenever they are used."""
        kept = self.remarks()
        _write(self.directory / "remarks.json", json.dumps([*kept, *(r for r in remarks if r not in kept)]).encode())

    def remarks(self) -> list[str]:
        """What `remember` was told, in order."""
        path = self.directory / "remarks.json"
        return [str(remark) for remark in json.loads(path.read_bytes())] if path.exists() else []

    def keep_batch_tokens(self, asked: int | None, used: int) -> None:
        """Keep the size of batches for whoever goes on, so that bytes do not depend on interruptions."""
        _write(self.directory / "batches.json", json.dumps({"asked": asked, "used": used}).encode())

    def batch_tokens(self, asked: int | None) -> int | None:
        """The size that was kept for this request, if any."""
        path = self.directory / "batches.json"
        kept = json.loads(path.read_bytes()) if path.exists() else None
        return int(kept["used"]) if kept is not None and kept["asked"] == asked else None

    def list_quarantined(self, samples: pa.Table) -> None:
        """Write quarantined.jsonl, a line of JSON for every row."""
        lines = "".join(json.dumps(row) + "\n" for row in samples.to_pylist())
        _write(self.directory / "quarantined.jsonl", lines.encode("ascii"))


def not_finite(losses: NDArray[np.float64], norms: NDArray[np.float64]) -> list[str | None]:
    """Why each gradient is none: "nan" or "infinite"; None where it is one."""
    sums = np.abs(losses) + np.abs(norms)
    return ["nan" if np.isnan(value) else "infinite" if np.isinf(value) else None for value in sums]


def _difference(directory: Path, header: Header) -> str | None:
    """In which fields the header that lies there differs from the one wanted; None where there is no other store's.

    A header that is lost or cannot be read is no difference where every record there is of the store wanted.
    """
    path = directory / HEADER
    if not path.exists() or not _readable(path):
        return None if is_of(directory, header) else f"its {HEADER} cannot be read, and shards are not of this run"
    found = json.loads(path.read_bytes())
    stored, wanted = {**found, **found["fingerprint"]}, {**header.content, **header.fingerprint}
    keys = [key for key in {**wanted, **stored} if key != "fingerprint"]
    differing = [key for key in keys if stored.get(key) != wanted.get(key)]
    return (
        "; ".join(f"{key}: there {_short(stored.get(key))}, now {_short(wanted.get(key))}" for key in differing) or None
    )


def _readable(path: Path) -> bool:
    """Whether it is a header, be it of another format."""
    try:
        return isinstance(json.loads(path.read_bytes())["fingerprint"], dict)
    except (ValueError, KeyError, TypeError):
        return False


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:14] + "…" + text[-3:]


def _write(path: Path, content: bytes | memoryview) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
