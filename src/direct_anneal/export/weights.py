"""Sampling weights by source and bucket of scores, as the configuration of a trainer's mixture.

Trainers take weights, not ids: a choice becomes the shares that it draws from each cell.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from direct_anneal.config.options import OPTIONS_FILE, require_new_file
from direct_anneal.config.weights import WeightsConfig
from direct_anneal.distill.choosing import CHOICE, HISTOGRAM
from direct_anneal.distill.cuts import Cut
from direct_anneal.distill.histogram import added, lower_edge, relabelled, stored
from direct_anneal.distill.parts import SCORES
from direct_anneal.distill.scoring import LISTING
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.lock import LOCK, MARK
from direct_anneal.io.records import RecordError, read_sealed
from direct_anneal.io.tables import read_parquet
from direct_anneal.run.layout import EVIDENCE, FRONTIER, MANIFEST, OUTPUT_FILES, REPORT
from direct_anneal.run.run_dir import RunDir

Shares = Mapping[str, float]  # path → share, best bucket first

_DIGITS = 10
_COLUMNS = ("source", "bucket", "documents", "size", "chosen_documents", "chosen_size", "share", "rate")
_OF_RUNS = OUTPUT_FILES | {MARK, LOCK, MANIFEST, EVIDENCE, FRONTIER, REPORT, OPTIONS_FILE, LISTING, HISTOGRAM, CHOICE}


def weights(config: WeightsConfig) -> tuple[pa.Table, str]:
    """Say how much of each source and bucket a choice draws, and how a trainer is told so.

    Buckets divide the ranking of the whole pool, as a choice does: their edges are the same scores in every source, and
    they hold equally many documents in all, but not of each source. Bucket 1 has the highest scores; where it is the
    only one, it is the whole source.

    Returns:
        the table: source, bucket, documents, size (tokens, or of scored text bytes), chosen_documents, chosen_size,
        share (of the choice's size; they add up to 1) and rate (chosen of what is there); and the configuration.

    Raises:
        InputError: the run is not finished, or has chosen nothing; `out` is there and may not be overwritten, is no
            such table, or would be a run's own file.

    Cost: one read of the run's table, or of all scores.
    """
    run = Path(config.run)
    if config.out is not None:
        _check_place(Path(config.out), overwrite=config.overwrite)
    cells = _of_scores(run, config.buckets) if (run / LISTING).exists() else _of_selection(run, config.buckets)
    table = _table(cells)
    if config.out is not None:
        with replacing(Path(config.out)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    shares = {
        config.paths.replace("{source}", row["source"]).replace("{bucket}", str(row["bucket"])): row["share"]
        for row in table.to_pylist()
        if row["share"] > 0
    }
    return table, MIXES[config.to](shares)


def _check_place(out: Path, *, overwrite: bool) -> None:
    """See that a table can be written where neither a run nor anyone else has a file.

    Raises:
        InputError: it cannot.
    """
    require_new_file(out, overwrite=overwrite)
    if out.exists() and not _is_table(out):
        raise InputError(
            field="out", must="be new or an earlier table of weights", got=f"but {out} is none", do="choose another"
        )
    place = out.resolve()
    for directory in place.parents:
        of_run = any((directory / name).is_file() for name in (MARK, MANIFEST, LISTING))
        if of_run and (directory != place.parent or out.name in _OF_RUNS):
            raise InputError(
                field="out",
                must="be no file of a run",
                got=f"but {out} would be one of {directory}",
                do="choose another",
            )


def _is_table(path: Path) -> bool:
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, ValueError):
        return False
    return names == list(_COLUMNS)


def _of_selection(run: Path, buckets: int) -> pa.Table:
    """Return a row for each scored document of a run: source, bucket, size, chosen."""
    opened = RunDir.open(run)
    evidence = opened.evidence(["domain", "num_tokens", "rank"])
    selected = opened.selected()
    scored = evidence["rank"].is_valid().to_numpy()
    ranks = evidence["rank"].filter(pa.array(scored)).to_numpy()
    position = np.empty(len(ranks), dtype=np.int64)
    position[np.argsort(ranks, kind="stable")] = np.arange(len(ranks))
    return pa.table(
        {
            "source": evidence["domain"].cast(pa.string()).filter(pa.array(scored)),
            "bucket": position * buckets // len(ranks) + 1,
            "size": evidence["num_tokens"].filter(pa.array(scored)),
            "documents": np.ones(len(ranks), dtype=np.int64),
            "chosen": selected[scored],
        }
    )


def _of_scores(run: Path, buckets: int) -> pa.Table:
    """Return the same of a scored pool, summed by source, bucket and chosen within each part."""
    try:
        choice = read_sealed(run / CHOICE)
        made = Cut.read(choice)
        if sha256_of_file(run / HISTOGRAM) != choice["histogram"]:
            raise RecordError(f"{HISTOGRAM} was changed since")
        histogram = added(relabelled(stored(run / HISTOGRAM), ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            subject=str(run),
            must="hold a choice",
            got=f"but {CHOICE} cannot be read",
            do=f"run direct-anneal merge {run} {option('fraction')} F",
        ) from error
    edges = _edges(histogram, buckets)
    cells = []
    for record in sorted((run / SCORES).glob("*.histogram.parquet")):
        path = record.with_name(record.name.replace(".histogram", ""))
        part = _scores(path)
        scores = part["score"].to_numpy()
        columns = {
            "source": part["domain"].cast(pa.string()),
            "bucket": buckets - np.searchsorted(edges, scores, side="right"),
            "size": part["size"],
            "documents": np.ones(len(part), dtype=np.int64),
            "chosen": made.chosen(int(path.stem), scores, part["row"].to_numpy(), part["domain"]),
        }
        grouped = pa.table(columns).group_by(["source", "bucket", "chosen"], use_threads=False)
        sums = grouped.aggregate([("size", "sum"), ("documents", "sum")])
        cells.append(sums.rename_columns({"size_sum": "size", "documents_sum": "documents"}))
    return pa.concat_tables(cells)


def _scores(path: Path) -> pa.Table:
    """Read a part's scores, which must be as they were written."""
    try:
        wanted = read_sealed(path.with_suffix(".json"))["files"]["parquet"]
        if sha256_of_file(path) == wanted:
            return read_parquet(path)
        got = "but was changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"but cannot be read ({error})"
    raise InputError(subject=str(path), must="hold a part's scores", got=got, do="run score again: it makes that part")


def _edges(histogram: pa.Table, buckets: int) -> NDArray[np.float32]:
    """Least scores of all buckets but the lowest, ascending: edges of bins, so that parts are nearly equal."""
    before = np.cumsum(histogram["documents"].to_numpy())
    wanted = np.arange(1, buckets) * before[-1] / buckets
    places = np.minimum(np.searchsorted(before, wanted, side="right"), len(before) - 1)
    return np.array([lower_edge(int(bin)) for bin in histogram["bin"].take(pa.array(places)).to_pylist()], np.float32)


def _table(cells: pa.Table) -> pa.Table:
    keys, sums = ["source", "bucket"], [("documents", "sum"), ("size", "sum")]
    there = cells.group_by(keys, use_threads=False).aggregate(sums)
    chosen = cells.filter(cells["chosen"]).group_by(keys, use_threads=False).aggregate(sums)
    names = {"documents_sum": "chosen_documents", "size_sum": "chosen_size"}
    joined = there.rename_columns({"documents_sum": "documents", "size_sum": "size"}).join(
        chosen.rename_columns(names), keys, use_threads=False
    )
    for name in names.values():
        joined = joined.set_column(
            joined.schema.get_field_index(name), name, pc.fill_null(joined[name], pa.scalar(0, pa.int64()))
        )
    joined = joined.sort_by([("source", "ascending"), ("bucket", "ascending")])
    sizes = joined["chosen_size"].to_numpy()
    joined = joined.append_column("share", pa.array(sizes / sizes.sum()))
    return joined.append_column("rate", pa.array(sizes / joined["size"].to_numpy()))


def _olmo_core(shares: Shares) -> str:
    """Write a `SourceMixtureList` of olmo_core.data.source_mixture; its ratios must add up to 1."""
    sources = [
        {"source_name": path, "target_ratio": share, "paths": [f"{path}/*.npy"]}
        for path, share in _rounded(shares).items()
    ]
    return _yaml({"sources": sources})


def _megatron(shares: Shares) -> str:
    """Write Megatron-LM's `--data-path`: weight and prefix in turn."""
    words = [f"{share!r} {shlex.quote(path)}" for path, share in _rounded(shares).items()]
    return "--data-path \\\n" + " \\\n".join(f"  {word}" for word in words) + "\n"


def _nanotron(shares: Shares) -> str:
    """Write the folders of a stage and their weights, in one order."""
    rounded = _rounded(shares)
    dataset = {"dataset_folder": list(rounded), "dataset_weights": list(rounded.values())}
    return _yaml({"data_stages": [{"data": {"dataset": dataset}}]})


def _levanter(shares: Shares) -> str:
    """Write Levanter's mixture of datasets: `configs` and `train_weights` of the same names."""
    rounded = _rounded(shares)
    configs = {path: {"train_urls": [f"{path}/*.jsonl.gz"]} for path in rounded}
    return _yaml({"data": {"configs": configs, "train_weights": dict(rounded)}})


def _mosaicml(shares: Shares) -> str:
    """Write streams of LLM Foundry's text loader: proportions of samples."""
    streams = {path: {"local": path, "proportion": share} for path, share in _rounded(shares).items()}
    return _yaml({"train_loader": {"name": "text", "dataset": {"streams": streams}}})


def _rounded(shares: Shares) -> dict[str, float]:
    return {path: round(share, _DIGITS) for path, share in shares.items()}


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


MIXES: dict[str, Callable[[Shares], str]] = {
    "olmo-core": _olmo_core,
    "megatron": _megatron,
    "nanotron": _nanotron,
    "levanter": _levanter,
    "mosaicml": _mosaicml,
}
