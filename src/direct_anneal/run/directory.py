"""The run's directory: who owns it, and the evidence that is written there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.objective import ObjectiveConfig, named
from direct_anneal.config.objective_options import OBJECTIVE_FIELDS
from direct_anneal.config.options import OPTIONS_FILE, keep
from direct_anneal.config.select import SelectConfig, import_plugin
from direct_anneal.curvature import PAPER_SHARE
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, replacing
from direct_anneal.io.lock import MARK, check_free, held
from direct_anneal.io.redaction import redacted
from direct_anneal.solver import Selection, SelectionProblem

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
# A manifest may name anything; only these are ever removed.
_OUTPUT_FILES = {
    *("selected.jsonl", "selected.jsonl.gz", "selected.jsonl.zst", "selected.parquet"),
    *("selected.npy", "selected.bin", "selected.idx", "selected.ds", "selected.ds.index", "selected.ds.metadata"),
}
_OUTPUT_DATASET = "selected"
_PAGES = ("selection.parquet", "frontier.parquet", "report.html")
_WRITTEN = (MARK, OPTIONS_FILE, "manifest.json", *_PAGES, *sorted(_OUTPUT_FILES))
_COVERAGE = "coverage.json"
_DEPENDENT: dict[str, dict[str, Any]] = {
    "objective": {
        "target_scale": None,
        "filter": None,
        "damping": None,
        "filter_curvature": None,
        "gradients": None,
        "ngram_weight": None,
        "budget_ratio": None,
        "objective_options": None,
    },
    "filter": {"damping": None, "filter_curvature": None, "ngram_weight": None},
    "filter_curvature": {"ngram_weight": None},
    "gradients": {"ngram_weight": None},
    "curvature": {"num_eigenpairs": None, "filter_curvature": None, "ngram_weight": None},
    "elbow": {"num_stiff": None},
    "num_stiff": {"elbow": PAPER_SHARE},
}


@contextmanager
def claim(out: Path, config: FeaturesConfig, max_length: int) -> Iterator[None]:
    """Hold the directory as this run's own. An unfinished run may be taken over by any other, which then calls `mark`.

    Raises:
        InputError: it holds another finished run and `overwrite` is off, or files that are no run's or another
            command's, or a run is under way there.
    """
    check_free(out, "pool")
    with held(out):
        finished = out / "manifest.json"
        wanted = _resolved(config, max_length)
        if finished.exists() and not config.overwrite and (difference := _difference(finished, wanted)):
            raise InputError(f"{out} holds another run ({difference}): choose another --out, or pass --overwrite")
        if not (out / MARK).exists():
            write_json(out / MARK, wanted)
            _keep(out, config)
        _sweep(out)
        yield


def mark(out: Path, config: FeaturesConfig, max_length: int) -> None:
    """Say of which configuration an unfinished run is: for `recorded`, and once what is there has proved to fit it."""
    if not (out / "manifest.json").exists():
        write_json(out / MARK, _resolved(config, max_length))
        _keep(out, config)


def recorded(run: Path, changes: dict[str, Any]) -> SelectConfig:
    """The configuration of a run with changes; another way to give the size replaces the run's own.

    Raises:
        InputError: the directory holds no run, or the changes would write over it unasked.
    """
    try:
        finished = run / "manifest.json"
        begun = json.loads((run / MARK).read_bytes())
        known = {name: begun[name] for name in SelectConfig.__dataclass_fields__ if name in begun}
        # Whoever wrote the run's files does not decide whether code is run here: who opens it does.
        known |= {"out": str(run), "trust_remote_code": False}
        missing = {"model", "pool", "validation"} - known.keys()
        if missing:
            raise KeyError(*missing)
        if finished.exists():
            known |= {"batch_tokens": json.loads(finished.read_bytes())["config"]["batch_tokens"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"RUN_DIR must be the directory of a select or features run, but {run} holds none that can be read: pass "
            "what was given to them as --out"
        ) from error
    sizes = ("num_samples", "num_tokens", "fraction")
    if any(changes.get(size) is not None for size in sizes):
        known |= dict.fromkeys(sizes)
    # Defaults that hang on another option, as the run settled them: they give way where that option changes.
    for option, dependent in _DEPENDENT.items():
        if option in changes:
            known |= {name: default for name, default in dependent.items() if name not in changes}
    if isinstance(changes.get("objective"), ObjectiveConfig):
        known |= dict.fromkeys(OBJECTIVE_FIELDS)
    elif "objective" in changes:
        for module in changes.get("plugin", ()):
            import_plugin(module)
        own = {field.name for field in fields(named(changes["objective"]))}
        known |= {name: None for name in OBJECTIVE_FIELDS if name not in own}
    config = SelectConfig(**{**known, **changes})
    if Path(config.out).resolve() == run.resolve() and not config.overwrite:
        raise InputError(f"--out must be another directory than the run's, but is {run}: name one, or pass --overwrite")
    return config


def is_of_another(out: Path, config: FeaturesConfig, max_length: int) -> bool:
    """Whether a finished run lies there that was configured otherwise."""
    finished = out / "manifest.json"
    return finished.exists() and _difference(finished, _resolved(config, max_length)) is not None


def retire(out: Path, config: FeaturesConfig, max_length: int) -> None:
    """Remove what an earlier run wrote at its end, the manifest that vouches for it first; features stay."""
    finished = out / "manifest.json"
    try:
        files = set(json.loads(finished.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        files = set()
    finished.unlink(missing_ok=True)
    for name in _PAGES:
        (out / name).unlink(missing_ok=True)
    for name in _OUTPUT_FILES & files:
        (out / name).unlink(missing_ok=True)
    if _OUTPUT_DATASET in files and (out / _OUTPUT_DATASET / "state.json").is_file():
        shutil.rmtree(out / _OUTPUT_DATASET)
    write_json(out / MARK, _resolved(config, max_length))
    _keep(out, config)


def _keep(out: Path, config: FeaturesConfig) -> None:
    keep(config.in_full, out)


def _sweep(out: Path) -> None:
    """Remove what a kill left half-written; the directories below features/ and corpus/ see to themselves."""
    for directory, names in ((out, _WRITTEN), (out / "features", (_COVERAGE,))):
        for name in names:
            (directory / (name + TEMPORARY_SUFFIX)).unlink(missing_ok=True)


def _resolved(config: FeaturesConfig, max_length: int) -> dict[str, Any]:
    """What the result depends on, as JSON gives it back."""
    content = redacted({**config.defining, "max_length": max_length})
    wanted: dict[str, Any] = json.loads(json.dumps(content))
    return wanted


def _difference(finished: Path, wanted: dict[str, Any]) -> str | None:
    """In what a finished run was configured otherwise; None where it was not."""
    try:
        found = json.loads(finished.read_bytes())["config"]
        differing = [name for name in wanted if found.get(name) != wanted[name]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest.json cannot be read"
    shown = (f"{name}: there {found.get(name)!s:.60}, now {wanted[name]!s:.60}" for name in differing[:3])
    return "; ".join(shown) or None


def write_coverage(run: Path, coverage: dict[str, Any]) -> None:
    """Keep beside a run's features which way every parameter went."""
    write_json(run / "features" / _COVERAGE, coverage)


def read_coverage(run: Path) -> dict[str, Any] | None:
    """What `write_coverage` kept; None where that is lost."""
    path = run / "features" / _COVERAGE
    return json.loads(path.read_bytes()) if path.exists() else None


def write_json(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON file whole or not at all, without secrets, and return what a reader will find in it."""
    text = json.dumps(redacted(content), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    written: dict[str, Any] = json.loads(text)
    return written


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def evidence(corpus: Corpus, pool: SketchedGradients, problem: SelectionProblem, selection: Selection) -> pa.Table:
    """A row for every sample of the pool, in its order, with the columns of `EVIDENCE_COLUMNS`.

    Rank 1 is the strongest; the selected come first. What is quarantined has nulls, and is not selected.
    """
    count = len(pool)
    chosen = np.zeros(count, dtype=bool)
    chosen[selection.indices] = True
    rest = np.flatnonzero(~chosen)
    assert problem.tie_order is not None
    rest = rest[np.lexsort((problem.tie_order[rest], -(selection.scores / problem.sizes)[rest]))]
    rank = np.empty(count, dtype=np.int64)
    rank[np.concatenate([selection.indices, rest])] = np.arange(1, count + 1)
    table = pool.samples
    for name, values in (
        ("stiff_cost", np.reshape(problem.stiff_cost, (count, -1)).sum(axis=1)),  # of all bands
        ("score", selection.scores),
        ("weight", selection.weights),
        ("rank", rank),
        ("selected", chosen),
    ):
        table = table.append_column(name, pa.array(values))
    if len(pool.quarantined):
        left_out = pool.quarantined.append_column("selected", pa.array(np.zeros(len(pool.quarantined), dtype=bool)))
        table = pa.concat_tables([table, left_out], promote_options="default")
        table = table.take(pc.index_in(corpus.index["id"], table["id"].combine_chunks()))
    return table.select(EVIDENCE_COLUMNS)
