"""Scores counted in bins: sums of histograms are the histogram of all, however a pool was divided.

A bin holds the float32 numbers whose leading 18 bits, in the order of numbers, are equal: its width is between 2⁻⁹ and
2⁻¹⁰ of the numbers in it, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SHIFT = np.uint32(32 - 18)
_SIGN = np.uint32(0x80000000)
_HELD_ROWS = 2**20

SCHEMA = pa.schema([("domain", pa.string()), ("bin", pa.uint32()), ("documents", pa.int64()), ("size", pa.int64())])


def bins_of(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bin of each score, (n,); larger scores have larger ones."""
    return _ordered(scores) >> _SHIFT


def lower_edge(bin: int) -> float:
    """Return the least number in a bin."""
    ordered = np.array([bin], dtype=np.uint32) << _SHIFT
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).astype(np.uint32)
    return float(bits.view(np.float32)[0])


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers in the order of the scores; −0 is 0."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint32)


def counted(
    domains: NDArray[np.int64], names: list[str], scores: NDArray[np.float32], sizes: NDArray[np.int64]
) -> pa.Table:
    """Count documents and their sizes by domain and bin.

    Args:
        domains: place in `names` of each document's, (n,).
        scores, sizes: (n,).

    Returns:
        a table of `SCHEMA`, by name and bin.
    """
    keys = domains.astype(np.uint64) << np.uint64(32) | bins_of(scores).astype(np.uint64)
    found, place = np.unique(keys, return_inverse=True)
    totals = np.zeros(len(found), dtype=np.int64)
    np.add.at(totals, place, sizes)
    table = pa.table(
        {
            "domain": pa.array([names[key >> 32] for key in found.tolist()], pa.string()),
            "bin": (found & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            "documents": np.bincount(place, minlength=len(found)).astype(np.int64),
            "size": totals,
        },
        schema=SCHEMA,
    )
    return table.sort_by([("domain", "ascending"), ("bin", "ascending")])


def added(tables: Iterable[pa.Table]) -> pa.Table:
    """Add histograms, in the same order. Cost: O(rows), as long as the sum has few of them."""
    held: list[pa.Table] = [SCHEMA.empty_table()]
    for table in tables:
        held.append(table)
        if sum(map(len, held)) - len(held[0]) >= _HELD_ROWS:
            held = [_summed(held)]
    return _summed(held).sort_by([("domain", "ascending"), ("bin", "ascending")])


def of_whole(tables: Iterable[pa.Table], max_domains: int) -> tuple[pa.Table, int]:
    """Return the histogram of a pool, and how many domains it has; beyond `max_domains` all are one, of null.

    A file's name is the domain of documents that name none: there can be as many as files.
    """
    names: set[str] = set()

    def by_domain() -> Iterator[pa.Table]:
        for table in kept:
            names.update(table["domain"].unique().to_pylist())
            yield table if len(names) <= max_domains else _without_domains(table)

    kept = iter(tables)
    whole = added(by_domain())
    return (whole if len(names) <= max_domains else added([_without_domains(whole)])), len(names)


def _summed(tables: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by(["domain", "bin"], use_threads=False)
    sums = grouped.aggregate([("documents", "sum"), ("size", "sum")])
    return sums.select(["domain", "bin", "documents_sum", "size_sum"]).rename_columns(SCHEMA.names).cast(SCHEMA)


def _without_domains(table: pa.Table) -> pa.Table:
    return table.set_column(0, SCHEMA.field("domain"), pa.nulls(len(table), pa.string()))


@dataclass(frozen=True)
class Cut:
    """Mark the chosen documents: all from the threshold on, and of those in the bin below it the first ones.

    Attributes:
        threshold: least score that is chosen whatever else; None where no bin fits as a whole.
        last: (score, part, row) of the last one chosen below the threshold, best score first, then in the pool's order;
            None where none is.
        documents, size: of the choice.
        domains: the cuts of domains with quotas; the rest is cut as above.
    """

    threshold: float | None
    last: tuple[float, int, int] | None
    documents: int
    size: int
    domains: Mapping[str, Cut] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Cut:
        """Return the cut that `asdict` and JSON made this of.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        last = None
        if content["last"] is not None:
            score, part, row = content["last"]
            last = (float(score), int(part), int(row))
        domains = {str(name): cls.read(own) for name, own in content.get("domains", {}).items()}
        return cls(content["threshold"], last, int(content["documents"]), int(content["size"]), domains)

    def chosen(
        self,
        part: int,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        domains: pa.ChunkedArray | None = None,
    ) -> NDArray[np.bool_]:
        """Mark the chosen documents of a part, (n,).

        Args:
            domains: of the documents; may be left out where no domain has a cut of its own.
        """
        found = self._reached(part, scores, rows)
        if self.domains:
            assert domains is not None
            labels = domains.cast(pa.string())
            for name, own in self.domains.items():
                of = pc.equal(labels, name).fill_null(False).to_numpy()
                found[of] = own._reached(part, scores[of], rows[of])
        return found

    def _reached(self, part: int, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = np.zeros(len(scores), dtype=bool) if self.threshold is None else scores >= np.float32(self.threshold)
        if self.last is not None:
            score, last_part, last_row = np.float32(self.last[0]), self.last[1], self.last[2]
            found |= scores > score
            if part < last_part:
                found |= scores == score
            elif part == last_part:
                found |= (scores == score) & (rows <= last_row)
        return found


def cut(histogram: pa.Table, budget: int, unit: str) -> tuple[Cut, int | None]:
    """Take the highest bins that fit into a budget as a whole; name the bin that no longer does, if there is one.

    Args:
        unit: "documents" or "size", which the budget counts.
    """
    by_bin = histogram.group_by("bin", use_threads=False).aggregate([("documents", "sum"), ("size", "sum")])
    by_bin = by_bin.sort_by([("bin", "descending")])
    spent = np.cumsum(by_bin[f"{unit}_sum"].to_numpy())
    whole = int(np.searchsorted(spent, budget, side="right"))
    bins = by_bin["bin"].to_numpy()
    taken = by_bin.slice(0, whole)
    made = Cut(
        threshold=lower_edge(int(bins[whole - 1])) if whole else None,
        last=None,
        documents=int(taken["documents_sum"].to_numpy().sum()),
        size=int(taken["size_sum"].to_numpy().sum()),
    )
    return made, int(bins[whole]) if whole < len(bins) else None


def refined(
    made: Cut,
    scores: NDArray[np.float32],
    parts: NDArray[np.int64],
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budget: int,
    unit: str,
) -> Cut:
    """Make a cut exact: the documents of the bin below it, (n,), are taken one by one while they fit."""
    order = np.lexsort((rows, parts, -scores.astype(np.float64)))
    costs = sizes[order] if unit == "size" else np.ones(len(order), dtype=np.int64)
    spent = made.size if unit == "size" else made.documents
    count = int(np.searchsorted(spent + np.cumsum(costs), budget, side="right"))
    if count == 0:
        return made
    last = order[count - 1]
    return Cut(
        threshold=made.threshold,
        last=(float(scores[last]), int(parts[last]), int(rows[last])),
        documents=made.documents + count,
        size=made.size + int(sizes[order[:count]].sum()),
    )
