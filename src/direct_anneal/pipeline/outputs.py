"""The run's directory: who owns it, and the evidence that is written there."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from direct_anneal.corpus import Corpus
from direct_anneal.durable import replacing
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.selection import Selection, SelectionProblem

EVIDENCE_COLUMNS = [
    "id",
    "source",
    "row",
    "domain",
    "num_tokens",
    "loss",
    "grad_norm",
    "stiff_cost",
    "score",
    "weight",
    "rank",
    "selected",
]
_DISTRIBUTIONS = ("direct-anneal", "torch", "numpy", "scipy", "pyarrow", "safetensors", "transformers")


def claim(out: Path, config: SelectConfig) -> None:
    """Make the directory this run's own, or see that it already is.

    Raises:
        InputError: it holds another run, or something that is none, and `overwrite` is off.
    """
    path = out / "config.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a directory, but {out} is a file: choose another")
    wanted = json.loads(json.dumps(config.defining))
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if found == wanted:
            return
        if not config.overwrite:
            raise InputError(
                f"{out} holds another run ({_difference(found, wanted)}): choose another --out, or pass --overwrite"
            )
    elif out.exists() and any(out.iterdir()) and not config.overwrite:
        raise InputError(
            f"--out must be new, empty or an earlier run, but {out} holds other files: choose another, or pass "
            "--overwrite"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its config.json cannot be read"
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    shown = "; ".join(f"{name}: there {found.get(name)}, now {wanted[name]}" for name in differing[:3])
    return shown or "of another version"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def evidence(corpus: Corpus, pool: SketchedGradients, problem: SelectionProblem, selection: Selection) -> pa.Table:
    """A row for every sample of the pool, in its order, with the columns of `EVIDENCE_COLUMNS`.

    Rank 1 is the strongest; the selected come first. What had no usable gradient has nulls, and is not selected.
    """
    count = len(pool)
    chosen = np.zeros(count, dtype=bool)
    chosen[selection.indices] = True
    rest = np.flatnonzero(~chosen)
    assert problem.tie_order is not None
    rest = rest[np.lexsort((problem.tie_order[rest], -selection.scores[rest]))]
    rank = np.empty(count, dtype=np.int64)
    rank[np.concatenate([selection.indices, rest])] = np.arange(1, count + 1)
    table = pool.samples
    for name, values in (
        ("stiff_cost", np.asarray(problem.stiff_cost)),
        ("score", selection.scores),
        ("weight", selection.weights),
        ("rank", rank),
        ("selected", chosen),
    ):
        table = table.append_column(name, pa.array(values))
    if len(pool.unusable):
        left_out = pool.unusable.append_column("selected", pa.array(np.zeros(len(pool.unusable), dtype=bool)))
        table = pa.concat_tables([table, left_out], promote_options="default")
        table = table.take(pc.index_in(corpus.index["id"], table["id"].combine_chunks()))
    return table.select(EVIDENCE_COLUMNS)


def composition(table: pa.Table, validation: Corpus) -> dict[str, Any]:
    """Pool against selection by domain, and what shifted: losses in nats per token, lengths in tokens.

    Args:
        table: as `evidence` gives it.
        validation: for its documents by domain.
    """
    chosen = table.filter(table["selected"])
    domains: dict[str, dict[str, int]] = {}
    for role, part in (("pool", table), ("selected", chosen), ("validation", validation.index)):
        grouped = part.group_by("domain").aggregate([("num_tokens", "count"), ("num_tokens", "sum")])
        for row in grouped.to_pylist():
            entry = domains.setdefault(str(row["domain"]), dict.fromkeys(_DOMAIN_COUNTS, 0))
            entry[role] = row["num_tokens_count"]
            entry[f"{role}_tokens"] = row["num_tokens_sum"]
    return {
        "domains": {name: domains[name] for name in sorted(domains)},
        "loss_mean": {"pool": _mean(table["loss"]), "selected": _mean(chosen["loss"])},
        "num_tokens_median": {"pool": _median(table["num_tokens"]), "selected": _median(chosen["num_tokens"])},
    }


_DOMAIN_COUNTS = ("pool", "pool_tokens", "selected", "selected_tokens", "validation", "validation_tokens")


def _mean(column: pa.ChunkedArray) -> float:
    values = column.to_numpy()
    return float(values[np.isfinite(values)].mean())


def _median(column: pa.ChunkedArray) -> float:
    return float(np.median(column.to_numpy()))


def described(config: SelectConfig, max_length: int) -> dict[str, Any]:
    """The configuration in full, the window as it was resolved, and the versions it ran with."""
    return {
        "config": {**asdict(config), "max_length": max_length},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
        },
    }
