"""A pool in every format that can be read, and runs over it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.corpus_samples import FORMATS, write_records
from direct_anneal.config.objective import DAMPING
from direct_anneal.progress import Progress, Silent, showing
from direct_anneal.selection import Features, Run, compute_features, select
from selection.tiny import SKETCH_SIZE, byte_tokenizer, documents, manifest, write_jsonl

NUM_POOL, NUM_VALIDATION = 60, 24
TOKENISED = "tokenised"  # this part of the pool has input_ids and no text


def write_pool(directory: Path) -> dict[str, dict[str, Any]]:
    """Sixty short documents of three domains, ten in each format, ten of them tokenised; the records by id."""
    records = documents(NUM_POOL, seed=2, prefix="p")
    tokenizer = byte_tokenizer()
    for position, format in enumerate([*FORMATS, TOKENISED]):
        part = records[position :: len(FORMATS) + 1]
        if format == TOKENISED:
            for record in part:
                record["input_ids"] = tokenizer(record.pop("text"))["input_ids"]
            write_records(directory, TOKENISED, "jsonl", part)
        else:
            write_records(directory, f"part-{position}", format, part)
    return {record["id"]: record for record in records}


def write_validation(path: Path, count: int = NUM_VALIDATION) -> Path:
    """Documents of two of the pool's domains."""
    return write_jsonl(path, documents(count, seed=3, prefix="v", domains=("prose", "code")))


def write_world(directory: Path) -> Path:
    """Both, as `options_of` names them."""
    write_pool(directory / "pool")
    write_validation(directory / "validation.jsonl")
    return directory


def options_of(model: Path, directory: Path, out: Path) -> dict[str, Any]:
    """Options of `select` over directory/pool and directory/validation.jsonl, but for the size."""
    return {
        "model": model,
        "pool": str(directory / "pool"),
        "validation": str(directory / "validation.jsonl"),
        "out": out,
        "sketch_size": SKETCH_SIZE,
    }


def chosen(model: Path, directory: Path, out: Path, progress: Progress | None = None, **options: Any) -> Run:
    """`select` over directory/pool and directory/validation.jsonl; a quarter, and by the paper's objective, unless
    something else is asked for."""
    if not {"num_samples", "num_tokens", "fraction"} & options.keys():
        options["fraction"] = 0.25
    with showing(progress or Silent()):
        return select(**(options_of(model, directory, out) | {"objective": "energy"} | options))


def computed(model: Path, directory: Path, out: Path, **options: Any) -> Features:
    """`features` of what `chosen` chooses from."""
    return compute_features(**(options_of(model, directory, out) | options))


def exported(out: Path, files: list[str]) -> list[dict[str, Any]]:
    """The documents that a run wrote, from whatever formats it wrote."""
    records: list[dict[str, Any]] = []
    for name in files:
        if (out / name).is_dir():
            records += datasets.load_from_disk(out / name).to_list()
        elif name.endswith(".parquet"):
            records += pq.read_table(out / name).to_pylist()
        else:
            records += [json.loads(line) for line in exported_lines(out / name)]
    return records


def exported_lines(path: Path) -> list[bytes]:
    """The lines of a plain or compressed file, read by other means than the package's."""
    if path.suffix == ".gz":
        content = gzip.decompress(path.read_bytes())
    elif path.suffix == ".zst":
        with pa.input_stream(str(path), compression="zstd") as stream:
            content = stream.read()
    else:
        content = path.read_bytes()
    return content.splitlines()


def stored_ngrams(out: Path, role: str) -> NDArray[np.float64]:
    """Rows of n-grams as a run left them, (N, L)."""
    shards = sorted((out / "features" / f"{role}-ngrams").glob("features-*.npy"))
    return np.concatenate([np.load(shard) for shard in shards]).astype(np.float64)


def stored(out: Path, role: str) -> NDArray[np.float64]:
    """Z as a run's store holds it, (N, R), read without the package."""
    directory = out / "features" / role
    units = np.concatenate([np.load(path) for path in sorted(directory.glob("*.npy"))]).astype(np.float64)
    sidecars = [pq.read_table(path) for path in sorted(directory.glob("features-*.parquet"))]
    return units * pa.concat_tables(sidecars)["grad_norm"].to_numpy()[:, None]


def recomputed(
    out: Path, objective: str, selected: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """From a run's features by the formulas of the method: stiff costs a (N,), rows x and a direction u.

    Rows are (N, R), or with n-grams beside the gradients (N, R + L). The objective of the selected is ⟨Σ x_i, u⟩: u is
    their own sum (`energy`), or the target (`descent`).
    """
    z, pool = stored(out, "validation"), stored(out, "pool")
    eigenvalues, vectors = np.linalg.eigh(z.T @ z / len(z))
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    num_stiff = int(np.argmax(np.cumsum(eigenvalues) >= 0.945 * eigenvalues.sum())) + 1
    assert manifest(out)["spectrum"]["num_stiff"] == num_stiff
    stiff = vectors[:, :num_stiff]
    x = pool if objective == "energy" else pool / np.linalg.norm(pool, axis=1, keepdims=True)
    cost = np.square(x @ stiff) @ eigenvalues[:num_stiff]
    if objective == "energy":
        x = x - x @ stiff @ stiff.T
        return cost, x, x[selected].sum(0)
    # Beside each unit gradient stands the unit row of n-grams, of the same weight.
    x = np.hstack([x, stored_ngrams(out, "pool")]) / np.sqrt(2)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    u = np.hstack([u, stored_ngrams(out, "validation")]) / np.sqrt(2)
    H = (x.T @ x / len(x) + u.T @ u / len(u)) / 2
    return cost, x, np.linalg.solve(H + DAMPING * np.linalg.eigvalsh(H)[-1] * np.eye(len(H)), u.mean(0))
