"""Report data, read from a finished run; nothing of the run is changed.

N documents of the pool, n of them usable, K selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.baselines import BASELINES, Candidates, duplicates, take
from direct_anneal.data import Corpus, texts_at
from direct_anneal.errors import InputError
from direct_anneal.io.digests import short_digest
from direct_anneal.io.redaction import redacted
from direct_anneal.run.layout import ROLES
from direct_anneal.run.run_dir import RunDir

EXCERPT_CHARACTERS = 500
LISTED_CHOSEN, LISTED_OTHERS, LISTED_OF_EACH = 150, 50, 3  # documents of the table; the last of each domain
STRONGEST, EACH_SIDE, WEAKEST = 6, 3, 4  # documents that are shown
NEAR_TOKENS = 2_000_000  # of a pool whose near duplicates are counted: beyond, that takes longer than all the rest
SELECTORS = ("random", "low-perplexity", "middle-perplexity", "gradient-cosine")


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A document as the report shows it.

    Attributes:
        evidence: its row of selection.parquet.
        stiff_cost: in units of the pool's mean; None where the objective knows none.
        text: its beginning; None where it has tokens alone.
    """

    evidence: dict[str, Any]
    stiff_cost: float | None
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Counts of exact and near duplicates in a set of documents.

    Attributes:
        documents: in the set.
        exact: of them, those whose tokens equal those of one with a smaller id.
        near: the same, or with a Jaccard similarity of at least 0.8 in runs of five tokens; None where not counted.
    """

    documents: int
    exact: int
    near: int | None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report shows.

    Attributes:
        run: the directory.
        manifest: its manifest.json.
        table: its selection.parquet, N rows.
        excerpts: by "strongest", "last_in", "first_out" and "weakest", in the order of rank; and "listed", documents
            of all ranks and of every domain, for the table.
        repeats: by "pool" and "selected".
        overlaps: selector → share of the K that it chooses, too.
        absent: of the three parts above, those that cannot be had any more, and why.
    """

    run: Path
    manifest: dict[str, Any]
    table: pa.Table
    excerpts: dict[str, list[Excerpt]]
    repeats: dict[str, Repeats]
    overlaps: dict[str, float]
    absent: dict[str, str]

    @cached_property
    def usable(self) -> pa.Table:
        """The n rows that are ranked."""
        return self.table.filter(self.table["rank"].is_valid())


def gather(run: Path) -> Findings:
    """Read a finished run. What hangs on files beyond selection and manifest may be absent.

    Raises:
        InputError: the directory holds no finished run.

    Cost: one pass over the features and over the tokens, and the sources that hold the documents shown; memory O(N).
    """
    opened = RunDir.open(run)
    manifest, table = opened.manifest, opened.evidence()
    excerpts: dict[str, list[Excerpt]] = {}
    repeats: dict[str, Repeats] = {}
    overlaps: dict[str, float] = {}
    absent: dict[str, str] = {}
    try:
        pool = opened.corpus("pool")
        opened.corpus("validation")
    except InputError as error:
        absent = dict.fromkeys(("excerpts", "repeats", "overlaps"), str(error))
    else:
        try:
            excerpts = _excerpts(table, pool, manifest["config"]["text_field"])
        except InputError as error:
            absent["excerpts"] = str(error)
        selected = np.flatnonzero(table["selected"].to_numpy())
        repeats = {"pool": _repeats(pool, np.arange(pool.num_samples)), "selected": _repeats(pool, selected)}
        if not manifest["spectrum"]:
            absent["overlaps"] = "others choose by gradients, which this objective does without"
        else:
            try:
                overlaps = _overlaps(opened, table)
            except InputError as error:
                absent["overlaps"] = str(error)
    return Findings(
        run=Path(redacted(str(run))),
        manifest=manifest,
        table=table,
        excerpts=excerpts,
        repeats=repeats,
        overlaps=overlaps,
        absent=absent,
    )


def _excerpts(table: pa.Table, pool: Corpus, text_field: str) -> dict[str, list[Excerpt]]:
    """Pick excerpts; rows of the table are samples of the corpus."""
    order = pc.sort_indices(table["rank"]).to_numpy()  # nulls last
    order = order[: len(table) - table["rank"].null_count]
    mean, count = pc.mean(table["stiff_cost"]).as_py(), pc.sum(table["selected"]).as_py()
    places = {
        "strongest": order[: min(STRONGEST, count)],
        "last_in": order[max(count - EACH_SIDE, min(STRONGEST, count)) : count],
        "first_out": order[count : count + EACH_SIDE],
        "weakest": order[max(len(order) - WEAKEST, count + EACH_SIDE) :],
        "listed": _listed(table, order, count),
    }
    found = texts_at(pool, np.concatenate(list(places.values())).tolist(), text_field)
    return {
        kind: [
            Excerpt(
                evidence=row,
                stiff_cost=None if mean is None else row["stiff_cost"] / mean if mean > 0 else 0.0,
                text=found[place],
            )
            for place, row in zip(those.tolist(), table.take(pa.array(those)).to_pylist(), strict=True)
        ]
        for kind, those in places.items()
    }


def _listed(table: pa.Table, order: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Choose the places of the documents in the table, in the order of rank.

    Chosen ones and others in even steps of rank, and the first of each domain, of the 100 largest.

    Args:
        order: places by rank, (n,); the first `count` are chosen.
    """
    steps = [
        part[:: -(-len(part) // most) or 1]
        for part, most in ((order[:count], LISTED_CHOSEN), (order[count:], LISTED_OTHERS))
    ]
    names = np.array([str(name) for name in table["domain"].to_pylist()], dtype=object)
    domains, which = np.unique(names, return_inverse=True)
    largest = np.argsort(-np.bincount(which, minlength=len(domains)), kind="stable")[:100]
    first = [order[which[order] == domain][:LISTED_OF_EACH] for domain in largest.tolist()]
    picked = np.zeros(len(table), dtype=bool)
    picked[np.concatenate([*steps, *first])] = True
    return order[picked[order]]


def _repeats(corpus: Corpus, places: NDArray[np.intp]) -> Repeats:
    if int(corpus.num_tokens[places].sum()) <= NEAR_TOKENS:
        words = [" ".join(map(str, corpus.tokens(i).tolist())) for i in places.tolist()]
        ids = corpus.index["id"].take(pa.array(places)).to_pylist()
        exact, near = (int(duplicates(words, ids, method).sum()) for method in ("exact", "minhash"))
        return Repeats(documents=len(places), exact=exact, near=near)
    digests = (short_digest(corpus.tokens(i).tobytes(), 8) for i in places.tolist())
    different = len(np.unique(np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(places))))
    return Repeats(documents=len(places), exact=len(places) - different, near=None)


def _overlaps(run: RunDir, table: pa.Table) -> dict[str, float]:
    """Compare the choices of other selectors at this size; the other objective is in the manifest."""
    config = run.manifest["config"]
    pool, validation = (run.corpus(role) for role in ROLES)
    gradients = [run.features(role, ngrams=False) for role in ROLES]
    candidates = Candidates(pool, validation, config["text_field"], (gradients[0], gradients[1]))
    selected, num_tokens = table["selected"].to_numpy(), config["num_tokens"]
    count = int(selected.sum())
    size = {"num_samples": count} if num_tokens is None else {"num_tokens": num_tokens}
    shared = {}
    for name in SELECTORS:
        other = take(BASELINES[name].score(candidates, config["seed"]), candidates, **size)
        shared[name] = int((selected & other).sum()) / count
    return shared
