"""The cut of scores with floors and ceilings of domains: the best documents that keep them.

Every domain that has a floor or ceiling is cut at a place of its own, all others at a common one: where a domain's
floor needs more than the common place gives, further down; where its ceiling allows less, further up. For a sum of
scores no other choice of this size that keeps them is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.distill.histogram import Cut, lower_edge
from direct_anneal.errors import InputError, option

Read = Callable[[set[int]], pa.Table]
"""The documents in some bins: bin, score, part, row, size, domain."""


@dataclass(frozen=True)
class _Group:
    """A domain with limits of its own, or (name None) all others together; its bins from the best one on."""

    name: str | None
    bins: NDArray[np.int64]
    documents: NDArray[np.int64]
    size: NDArray[np.int64]
    unit: str
    floor: int
    ceiling: int

    @cached_property
    def spent(self) -> NDArray[np.int64]:
        """Documents or size of so many bins, from none on."""
        return np.concatenate([[0], np.cumsum(self.documents if self.unit == "documents" else self.size)])

    def through(self, bin: int) -> int:
        """Count its bins that are `bin` or better."""
        return int(np.searchsorted(-self.bins, -bin, side="right"))

    def cut(self, count: int) -> Cut:
        """Take the best so many bins as a whole."""
        return Cut(
            threshold=lower_edge(int(self.bins[count - 1])) if count else None,
            last=None,
            documents=int(self.documents[:count].sum()),
            size=int(self.size[:count].sum()),
        )


@dataclass(frozen=True)
class _Reach:
    """Cut of a group, at least or at most: so many whole bins, and so many documents of the next."""

    cut: Cut
    spent: int


def cut_with_quotas(
    histogram: pa.Table,
    budget: int,
    unit: str,
    floors: Mapping[str, int],
    ceilings: Mapping[str, int],
    read: Read | None,
) -> Cut:
    """Choose the best of at most `budget` that keeps floors and ceilings; in whole bins, or exact.

    Args:
        histogram: by domain and bin.
        unit: "documents" or "size", which budget, floors and ceilings count.
        read: for an exact cut. It is called at most twice.

    Raises:
        InputError: a domain is unknown or has too little, or the floors come to more than the budget.

    Cost: O(domains · bins) of the histogram; exact, two reads of all scores.
    """
    groups = _groups(histogram, unit, floors, ceilings)
    least, most = _whole_reaches(groups) if read is None else _exact_reaches(groups, read)
    for group, low, high in zip(groups, least, most, strict=True):
        if low.spent > high.spent:
            raise InputError(
                subject=f"the floor of {group.name}",
                must="fit below its ceiling",
                got=f"but the least that reaches it comes to {low.spent:,}",
                do="leave more room between them" + ("" if read else f", or pass {option('exact')}"),
            )
    if (needed := sum(low.spent for low in least)) > budget:
        raise InputError(
            subject="the floors",
            must=f"fit into the choice, {budget:,}",
            got=f"but come to {needed:,}",
            do="ask for more, or for lower floors" + ("" if read else f", or pass {option('exact')}"),
        )
    bins = np.unique(np.concatenate([group.bins for group in groups]))[::-1]

    def spent(bin: int) -> int:
        return sum(
            min(max(int(group.spent[group.through(bin)]), low.spent), high.spent)
            for group, low, high in zip(groups, least, most, strict=True)
        )

    first, end = 0, len(bins)  # bins[first] is the best one that no longer fits
    while first < end:
        middle = (first + end) // 2
        first, end = (middle + 1, end) if spent(int(bins[middle])) <= budget else (first, middle)
    before = int(bins[first - 1]) if first else int(bins[0]) + 1
    cuts = [_clipped(*limits, before) for limits in zip(groups, least, most, strict=True)]
    if read is not None and first < len(bins):
        cuts = _refined(groups, least, most, cuts, read({int(bins[first])}), budget - spent(before), before)
    named = {group.name: made for group, made in zip(groups, cuts, strict=True) if group.name is not None}
    [rest] = [made for group, made in zip(groups, cuts, strict=True) if group.name is None]
    return Cut(
        threshold=rest.threshold,
        last=rest.last,
        documents=sum(made.documents for made in cuts),
        size=sum(made.size for made in cuts),
        domains=named,
    )


def _groups(histogram: pa.Table, unit: str, floors: Mapping[str, int], ceilings: Mapping[str, int]) -> list[_Group]:
    domains = histogram["domain"].to_numpy(zero_copy_only=False)
    bins, documents, size = (histogram[name].to_numpy().astype(np.int64) for name in ("bin", "documents", "size"))
    named = sorted({*floors, *ceilings})
    groups = []
    for name in (*named, None):
        of = ~np.isin(domains.astype(str), named) if name is None else domains == name
        kinds, place = np.unique(-bins[of], return_inverse=True)
        totals = np.zeros((2, len(kinds)), dtype=np.int64)
        for total, amounts in zip(totals, (documents, size), strict=True):
            np.add.at(total, place, amounts[of])
        there = int(totals[0 if unit == "documents" else 1].sum())
        floor = 0 if name is None else floors.get(name, 0)
        ceiling = there if name is None else min(there, ceilings.get(name, there))
        if floor > there:
            raise InputError(
                field="floors",
                must=f"ask for no more than the pool has of {name}, {there:,}",
                got=f"got {floor:,}",
            )
        groups.append(_Group(name, -kinds, totals[0], totals[1], unit, floor, ceiling))
    return groups


def _whole_reaches(groups: list[_Group]) -> tuple[list[_Reach], list[_Reach]]:
    least, most = [], []
    for group in groups:
        low = int(np.searchsorted(group.spent, group.floor, side="left"))
        high = int(np.searchsorted(group.spent, group.ceiling, side="right")) - 1
        least.append(_Reach(group.cut(low), int(group.spent[low])))
        most.append(_Reach(group.cut(high), int(group.spent[high])))
    return least, most


def _exact_reaches(groups: list[_Group], read: Read) -> tuple[list[_Reach], list[_Reach]]:
    """Return reaches to the very document, where a floor or a ceiling lies within a bin."""
    asked: list[tuple[_Group, bool, int, int]] = []  # group, of the floor, bins as a whole, amount
    for group in groups:
        low = max(int(np.searchsorted(group.spent, group.floor, side="left")) - 1, 0)
        high = int(np.searchsorted(group.spent, group.ceiling, side="right")) - 1
        asked += [(group, True, low, group.floor), (group, False, high, group.ceiling)]
    wanted = {int(group.bins[count]) for group, _, count, amount in asked if group.spent[count] < amount}
    found = read(wanted) if wanted else None
    reaches: tuple[list[_Reach], list[_Reach]] = ([], [])
    for group, of_floor, count, amount in asked:
        made, spent = group.cut(count), int(group.spent[count])
        if spent < amount and found is not None:
            inside = _ordered(found.filter(pc.equal(found["bin"], int(group.bins[count]))), group)
            total = spent + np.cumsum(_costs(inside, group.unit))
            taken = int(np.searchsorted(total, amount, side="left")) + 1 if of_floor else int((total <= amount).sum())
            made, spent = _further(made, inside.slice(0, taken)), int(total[taken - 1]) if taken else spent
        reaches[0 if of_floor else 1].append(_Reach(made, spent))
    return reaches


def _ordered(found: pa.Table, group: _Group | None) -> pa.Table:
    """Sort a group's documents, or all: best first, then in the pool's order."""
    if group is not None and group.name is not None:
        found = found.filter(pc.equal(found["domain"], group.name))
    keys = [("score", "descending"), ("part", "ascending"), ("row", "ascending")]
    return found.sort_by(keys)


def _costs(found: pa.Table, unit: str) -> NDArray[np.int64]:
    return np.ones(len(found), dtype=np.int64) if unit == "documents" else found["size"].to_numpy().astype(np.int64)


def _further(made: Cut, taken: pa.Table) -> Cut:
    """Extend the cut by these documents, which come next."""
    if not len(taken):
        return made
    last = taken.slice(len(taken) - 1).to_pylist()[0]
    return Cut(
        threshold=made.threshold,
        last=(float(last["score"]), int(last["part"]), int(last["row"])),
        documents=made.documents + len(taken),
        size=made.size + int(taken["size"].to_numpy().sum()),
    )


def _clipped(group: _Group, low: _Reach, high: _Reach, bin: int) -> Cut:
    """Take all bins down to `bin`, but no less than the floor and no more than the ceiling."""
    count = group.through(bin)
    spent = int(group.spent[count])
    return low.cut if spent <= low.spent else high.cut if spent >= high.spent else group.cut(count)


def _refined(
    groups: list[_Group], least: list[_Reach], most: list[_Reach], cuts: list[Cut], found: pa.Table, left: int, bin: int
) -> list[Cut]:
    """Take documents of the bin after `bin`, which did not fit as a whole, one by one, best first, while they fit."""
    names = [group.name for group in groups]
    found = _ordered(found, None)
    place_of = {name: place for place, name in enumerate(names)}
    owners = np.array([place_of.get(name, place_of[None]) for name in found["domain"].to_pylist()], dtype=np.int64)
    allowed = np.zeros(len(found), dtype=bool)
    for owner, (group, low, high) in enumerate(zip(groups, least, most, strict=True)):
        before = int(group.documents[: group.through(bin)].sum())
        start, end = (max(reach.cut.documents - before, 0) for reach in (low, high))
        allowed[np.flatnonzero(owners == owner)[start:end]] = True
    places = np.flatnonzero(allowed)
    total = np.cumsum(_costs(found, groups[0].unit)[places])
    taken = places[: int(np.searchsorted(total, left, side="right"))]
    return [_further(own, found.take(pa.array(taken[owners[taken] == owner]))) for owner, own in enumerate(cuts)]
