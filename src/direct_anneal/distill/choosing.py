"""The choice that a cut of the scores makes, in the pool's own formats.

OUT/selected/00042.jsonl.zst (or the like) holds the chosen documents of source 42, OUT/scores/00042.selected.json
vouches for it, and OUT/selected.json, written last, says what was chosen.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.score import CutConfig
from direct_anneal.data import write_rows
from direct_anneal.distill.cuts import Cut
from direct_anneal.distill.cutting import cut
from direct_anneal.distill.histogram import bins_of, stored
from direct_anneal.distill.parts import Part, scores_of
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import TEMPORARY_SUFFIX
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.records import read_sealed, write_record
from direct_anneal.io.redaction import redacted

HISTOGRAM, CHOSEN, CHOICE = "histogram.parquet", "selected", "selected.json"


@dataclass(frozen=True)
class Counts:
    """Documents and size of a scored pool, and of each domain; None if there are too many to be told apart."""

    documents: int
    size: int
    domains: Mapping[str, tuple[int, int]] | None


def choose(
    out: Path,
    parts: Sequence[Part],
    counts: Counts,
    card: Mapping[str, Any],
    config: CutConfig,
    write: Callable[[Cut, int], object],
) -> dict[str, Any]:
    """Cut, and write what is chosen.

    Args:
        counts: of the histogram in `out`.
        write: calls `write_chosen` for each part, with this cut and size of the vocabulary.

    Returns:
        what selected.json says: threshold, last, documents, size, about how many tokens, files.

    Raises:
        InputError: as `budget_of`, `cut` and `write_chosen`; or nothing fits.
    """
    (out / CHOICE).unlink(missing_ok=True)
    budget, unit = budget_of(config, counts, card["tokens_per_size"])
    limits = limits_of(config, counts, budget, unit, card["tokens_per_size"])
    read = partial(_in_bins, out, parts) if config.exact else None
    made = cut(stored(out / HISTOGRAM), budget, unit, *limits, read)
    if not made.documents:
        raise InputError(
            subject="the choice",
            must="hold at least one document",
            got="but the best bin of scores exceeds it",
            do="ask for more, or for an exact cut",
        )
    write(made, card["vocab_size"])
    records = [read_sealed(part.path(out, "selected.json")) for part in parts]
    written = sum(record["documents"] for record in records)
    assert written == made.documents, f"the cut holds {made.documents} documents, but {written} were written"
    choice = {
        **asdict(made),
        "asked": budget,
        "asked_unit": unit,
        "about_tokens": round(made.size * card["tokens_per_size"]),
        "files": [name for record in records for name in record["files"]],
        "histogram": sha256_of_file(out / HISTOGRAM),
    }
    return write_record(out / CHOICE, choice)


def budget_of(config: CutConfig, counts: Counts, tokens_per_size: float) -> tuple[int, str]:
    """Return the size of the choice and its unit: "documents" or "size".

    Raises:
        InputError: the pool is too small.
    """
    documents, size = counts.documents, counts.size
    if config.fraction is not None:
        return max(1, math.floor(config.fraction * documents + 0.5)), "documents"
    if config.num_samples is not None:
        if config.num_samples > documents:
            raise InputError(
                field="num_samples",
                must=f"be at most the pool's {documents:,} scored documents",
                got=config.num_samples,
            )
        return config.num_samples, "documents"
    assert config.num_tokens is not None
    if config.num_tokens > size * tokens_per_size:
        raise InputError(
            field="num_tokens",
            must=f"be at most the pool's, about {size * tokens_per_size:,.0f}",
            got=f"got {config.num_tokens:,}",
        )
    return math.floor(config.num_tokens / tokens_per_size), "size"


def limits_of(
    config: CutConfig, counts: Counts, budget: int, unit: str, tokens_per_size: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Convert floors and ceilings to the unit of the cut.

    Raises:
        InputError: the pool has no such domain, or more domains than are told apart.
    """
    known = sorted(counts.domains or ())
    rate = 1.0 if unit == "documents" else 1 / tokens_per_size

    def amounts(field: str, asked: Mapping[str, int | float], whole: Callable[[float], int]) -> dict[str, int]:
        for domain in asked:
            if domain not in known:
                there = f"there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
                too_many = f"there are too many to be told apart: name a {option('domain_field')} with fewer"
                raise InputError(
                    field=field,
                    must="name a domain of the pool",
                    got=f"but {domain} is none",
                    do=too_many if counts.domains is None else there,
                )
        return {
            domain: whole(amount * budget if isinstance(amount, float) else amount * rate)
            for domain, amount in asked.items()
        }

    # Up to the rounding of the product: a tenth of 30 is 3.
    floors = amounts("floors", config.floors, lambda amount: math.ceil(amount - 1e-9 * budget))
    return floors, amounts("ceilings", config.ceilings, lambda amount: math.floor(amount + 1e-9 * budget))


def _in_bins(out: Path, parts: Sequence[Part], bins: set[int]) -> Iterator[pa.Table]:
    """Read the documents in some bins, in the pool's order. Cost: a read of all scores."""
    wanted = np.array(sorted(bins), dtype=np.uint32)
    for part in parts:
        for table in scores_of(out, part):
            inside = table.filter(pa.array(np.isin(bins_of(table["score"].to_numpy()), wanted)))
            inside = inside.append_column("part", pa.array(np.full(len(inside), part.number, dtype=np.int64)))
            yield inside.set_column(1, "domain", inside["domain"].cast(pa.string()))


def write_chosen(part: Part, out: Path, made: Cut, vocab_size: int) -> None:
    """Write the chosen documents of one part, unless this cut's are there; the record last.

    Raises:
        InputError: the source has changed.
    """
    directory, record = out / CHOSEN, part.path(out, "selected.json")
    directory.mkdir(exist_ok=True)
    wanted = json.loads(json.dumps(redacted(asdict(made))))  # as a record has it
    if record.exists():
        found = read_sealed(record)
        if found["cut"] == wanted and all((directory / name).exists() for name in found["files"]):
            return
        record.unlink()
        for name in found["files"]:
            remove(directory / name)
    chosen = np.concatenate(
        [np.zeros(0, dtype=np.int64), *(_chosen_of(table, part, made) for table in scores_of(out, part))]
    )
    files: list[str] = []
    if len(chosen):
        temporary = directory / f"{part.number:05d}{TEMPORARY_SUFFIX}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            for path in write_rows(part.source, part.state, chosen, temporary, vocab_size):
                files.append(path.name.replace(CHOSEN, f"{part.number:05d}", 1))
                remove(directory / files[-1])
                path.replace(directory / files[-1])
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    content = {"source": str(part.source), "cut": wanted, "files": files, "documents": len(chosen)}
    write_record(record, content)


def _chosen_of(table: pa.Table, part: Part, made: Cut) -> NDArray[np.int64]:
    """Return the chosen rows of some of a part's."""
    rows: NDArray[np.int64] = table["row"].to_numpy()
    return rows[made.chosen(part.number, table["score"].to_numpy(), rows, table["domain"])]


def remove(path: Path) -> None:
    """Remove a file, or a dataset's directory; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
