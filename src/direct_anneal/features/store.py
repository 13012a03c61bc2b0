"""The feature store: a directory of immutable shards, each committed by a small record written last.

N samples, R sketch size, n rows of one shard. The files can be read with numpy and pyarrow alone.

    store.json              format, N, R, rows per shard, fingerprint
    features-00042.npy      float16 (n, R): rows of unit norm, zero where the gradient could not be used
    features-00042.parquet  id, source, row, domain, num_tokens, loss, grad_norm, reason: n rows; the reason is null, or
                            "nan" or "infinite" where there is no gradient
    quarantined.jsonl       id, source, row, reason of the samples that were left out when the store was last used
    batches.json            tokens of a batch, as asked for (null: to be found) and as used since
    remarks.json            what whoever computed the shards had to say of them, where that is anything
    features-00042.json     rows, and size and sha256 of the two files: what makes the shard count
"""

from __future__ import annotations

import hashlib
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

FORMAT = 2
ROWS_PER_SHARD = 1024

# The records before what they vouch for.
_OWN = (
    "features-*.json",
    "features-*.npy",
    "features-*.parquet",
    "quarantined.jsonl",
    "batches.json",
    "remarks.json",
    "store.json",
)

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
        InputError: the directory holds a store of another fingerprint; both are named.
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
        self.fingerprint = dict(fingerprint)
        self.num_samples = num_samples
        self.sketch_size = sketch_size
        self.rows_per_shard = rows_per_shard
        header = {
            "format": FORMAT,
            "num_samples": num_samples,
            "sketch_size": sketch_size,
            "rows_per_shard": rows_per_shard,
            "fingerprint": dict(fingerprint),
        }
        path = directory / "store.json"
        difference = _difference(path, header) if path.exists() else None
        if difference is not None:
            if not replace:
                raise InputError(
                    f"{directory} holds features of another run ({difference}): choose another --out, or pass "
                    "--overwrite to compute them anew"
                )
            self._discard()
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(header, indent=2, sort_keys=True).encode())
        for leftover in directory.glob("*.tmp"):
            leftover.unlink()

    @classmethod
    def open(cls, directory: Path) -> FeatureStore:
        """The complete store that lies there, whatever its fingerprint. Cost: reads it once.

        Raises:
            InputError: there is none, or shards are missing or damaged.
        """
        try:
            header = json.loads((directory / "store.json").read_bytes())
            store = cls(
                directory,
                num_samples=header["num_samples"],
                sketch_size=header["sketch_size"],
                fingerprint=header["fingerprint"],
                rows_per_shard=header["rows_per_shard"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"features must lie in {directory}, but there are none that can be read: run select first"
            ) from error
        if missing := store.missing():
            raise InputError(
                f"all features must be there, but of {store.num_shards:,} shards in {directory} {len(missing):,} are "
                "missing or damaged: run select again, it goes on where it stopped"
            )
        return store

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.rows_per_shard)

    def rows(self, shard: int) -> range:
        """The positions in the corpus that a shard holds."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.num_samples))

    def missing(self) -> list[int]:
        """Shards to compute: never committed, or damaged since. Cost: reads every committed shard once."""
        return [shard for shard in range(self.num_shards) if not self._intact(shard)]

    def write(self, shard: int, content: ShardRows) -> None:
        """Commit one shard. Killed at any moment, the shard is either there whole or counts as missing.

        Raises:
            ValueError: the rows are not those of this shard.
            OSError: the disk is full, or worse; what was committed before stays.
        """
        shape = (len(self.rows(shard)), self.sketch_size)
        if content.features.shape != shape:
            raise ValueError(f"shard {shard} has shape {shape}, got features of shape {content.features.shape}")
        table = content.samples
        for name, values in (("loss", content.losses), ("grad_norm", content.norms)):
            table = table.append_column(name, pa.array(values, from_pandas=True))  # NaN is no number: null
        table = table.append_column("reason", pa.array(content.reasons, pa.string()))
        array, sidecar = BytesIO(), BytesIO()
        np.save(array, content.features, allow_pickle=False)
        pq.write_table(table, sidecar, compression="zstd")
        record: dict[str, Any] = {"rows": shape[0], "files": {}}
        for suffix, buffer in (("npy", array), ("parquet", sidecar)):
            _write(self._path(shard, suffix), buffer.getbuffer())
            digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
            record["files"][suffix] = {"bytes": buffer.getbuffer().nbytes, "sha256": digest}
        _write(self._path(shard, "json"), json.dumps(record, indent=2).encode())

    def features(self) -> list[NDArray[np.float16]]:
        """All rows as memory-mapped blocks, in the corpus's order. Every shard must be committed."""
        return [
            np.load(self._path(shard, "npy"), mmap_mode="r", allow_pickle=False) for shard in range(self.num_shards)
        ]

    def samples(self) -> pa.Table:
        """All sidecars as one table of N rows. Every shard must be committed."""
        return pa.concat_tables(pq.read_table(self._path(shard, "parquet")) for shard in range(self.num_shards))

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

    def _path(self, shard: int, suffix: str) -> Path:
        return self.directory / f"features-{shard:05d}.{suffix}"

    def _intact(self, shard: int) -> bool:
        try:
            record = json.loads(self._path(shard, "json").read_bytes())
            for suffix, expected in record["files"].items():
                path = self._path(shard, suffix)
                if path.stat().st_size != expected["bytes"]:
                    return False
                with path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                        return False
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return False  # no record, or one that is no record of ours
        return set(record["files"]) == {"npy", "parquet"}


def not_finite(losses: NDArray[np.float64], norms: NDArray[np.float64]) -> list[str | None]:
    """Why each gradient is none: "nan" or "infinite"; None where it is one."""
    sums = np.abs(losses) + np.abs(norms)
    return ["nan" if np.isnan(value) else "infinite" if np.isinf(value) else None for value in sums]


def _difference(path: Path, header: dict[str, Any]) -> str | None:
    """In which fields a stored header differs from the one wanted; None where it is the same."""
    try:
        found = json.loads(path.read_bytes())
        stored = {**found, **found["fingerprint"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its store.json cannot be read"
    wanted = {**header, **header["fingerprint"]}
    keys = [key for key in {**wanted, **stored} if key != "fingerprint"]
    differing = [key for key in keys if stored.get(key) != wanted.get(key)]
    return (
        "; ".join(f"{key}: there {_short(stored.get(key))}, now {_short(wanted.get(key))}" for key in differing) or None
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:14] + "…" + text[-3:]


def _write(path: Path, content: bytes | memoryview) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
