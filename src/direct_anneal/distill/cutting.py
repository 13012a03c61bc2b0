"""The cut of scores: the best documents that fit, and keep floors and ceilings of domains where there are any.

Every domain that has a floor or ceiling is cut at a place of its own, all others at a common one: where a domain's
floor needs more than the common place gives, further down; where its ceiling allows less, further up. For a sum of
scores no other choice of this size that keeps them is better.

An exact cut looks closer where a cut falls: into the bin, score by score, and then at the documents that have the very
score, one by one in the pool's order. No step holds more than counts: what it costs is reads of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.distill.cuts import Cut
from direct_anneal.distill.histogram import SCHEMA, added, first_key, keys_of, relabelled, score_of
from direct_anneal.errors import InputError, option

Key = TypeVar("Key", int, NDArray[np.int64])
Read = Callable[[set[int]], Iterator[pa.Table]]
"""Read the documents in some bins, in the pool's order: score, part, row, size, domain."""


@dataclass(frozen=True)
class _Group:
    """A domain with limits of its own, or (name None) all others together: what it has, best scores first.

    Attributes:
        keys: least of each bin, (n,), descending; where a bin was looked into, of each score.
        documents, size: of each, (n,).
        unit: "documents" or "size", which floor, ceiling and `spent` count.
    """

    name: str | None
    keys: NDArray[np.int64]
    documents: NDArray[np.int64]
    size: NDArray[np.int64]
    unit: str
    floor: int
    ceiling: int

    @cached_property
    def spent(self) -> NDArray[np.int64]:
        """Documents or size of the first so many, from none on, (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.documents if self.unit == "documents" else self.size)])

    def through(self, key: int) -> int:
        """Count those from `key` on."""
        return int(np.searchsorted(-self.keys, -key, side="right"))

    def cut(self, count: int) -> Cut:
        """Take the best so many as a whole."""
        return Cut(
            threshold=score_of(int(self.keys[count - 1])) if count else None,
            last=None,
            documents=int(self.documents[:count].sum()),
            size=int(self.size[:count].sum()),
        )

    def with_scores(self, bins: set[int], found: pa.Table) -> _Group:
        """Return the same with scores in place of these bins; `found` counts its documents by score."""
        fine = found.filter(pa.array(np.isin(_bin(found["bin"].to_numpy()), sorted(bins))))
        kept = ~np.isin(_bin(self.keys), sorted(bins))
        new = [fine[name].to_numpy().astype(np.int64) for name in ("bin", "documents", "size")]
        old = [own[kept] for own in (self.keys, self.documents, self.size)]
        keys, documents, size = (np.concatenate(both) for both in zip(old, new, strict=True))
        order = np.argsort(-keys)
        return replace(self, keys=keys[order], documents=documents[order], size=size[order])


@dataclass(frozen=True)
class _Reach:
    """The cut of a group that a limit of its own makes, and what it comes to."""

    cut: Cut
    spent: int

    @classmethod
    def of(cls, group: _Group, count: int) -> _Reach:
        """Take the best so many as a whole."""
        return cls(group.cut(count), int(group.spent[count]))


def cut(
    histogram: Iterable[pa.Table],
    budget: int,
    unit: str,
    floors: Mapping[str, int],
    ceilings: Mapping[str, int],
    read: Read | None,
) -> Cut:
    """Choose the best of at most `budget` that keeps floors and ceilings; in whole bins, or exact.

    Args:
        histogram: by domain and bin, in any number of parts.
        unit: "documents" or "size", which budget, floors and ceilings count.
        read: for an exact cut. It is called at most twice, and twice more where there are limits.

    Raises:
        InputError: a domain has too little, or the floors come to more than the budget.

    Cost: one read of the histogram; exact, of the scores. Memory: bins of the domains that have limits, and of the
    rest; 2¹⁴ scores of a bin for each.
    """
    groups = _groups(histogram, unit, floors, ceilings)
    least, most = _reaches(groups, read)
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
    before, beyond, spent = _common(groups, least, most, budget)
    if read is not None and beyond is not None:
        groups = _looked_into(groups, [{_bin(beyond)}] * len(groups), read)
        before, beyond, spent = _common(groups, least, most, budget)
    cuts = [_clipped(*limits, before) for limits in zip(groups, least, most, strict=True)]
    if read is not None and beyond is not None:
        cuts = _one_by_one(groups, least, most, cuts, read, budget - spent, before, beyond)
    named = {group.name: made for group, made in zip(groups, cuts, strict=True) if group.name is not None}
    [rest] = [made for group, made in zip(groups, cuts, strict=True) if group.name is None]
    return Cut(
        threshold=rest.threshold,
        last=rest.last,
        documents=sum(made.documents for made in cuts),
        size=sum(made.size for made in cuts),
        domains=named,
    )


def _groups(
    histogram: Iterable[pa.Table], unit: str, floors: Mapping[str, int], ceilings: Mapping[str, int]
) -> list[_Group]:
    named = sorted({*floors, *ceilings})
    table = added(relabelled(histogram, named))
    groups = []
    for name in (*named, None):
        of = _of_group(table, name)
        bins, documents, size = (of[field].to_numpy().astype(np.int64)[::-1] for field in ("bin", "documents", "size"))
        there = int((documents if unit == "documents" else size).sum())
        floor = 0 if name is None else floors.get(name, 0)
        ceiling = there if name is None else min(there, ceilings.get(name, there))
        if floor > there:
            raise InputError(
                field="floors",
                must=f"ask for no more than the pool has of {name}, {there:,}",
                got=f"got {floor:,}",
            )
        groups.append(_Group(name, first_key(1) * bins, documents, size, unit, floor, ceiling))
    return groups


def _of_group(table: pa.Table, name: str | None) -> pa.Table:
    return table.filter(pc.is_null(table["domain"]) if name is None else pc.equal(table["domain"], name))


def _bin(key: Key) -> Key:
    return key // first_key(1)


def _common(groups: list[_Group], least: list[_Reach], most: list[_Reach], budget: int) -> tuple[int, int | None, int]:
    """Find the last key down to which all fits into the budget, the next one, and what fits comes to."""
    keys = np.unique(np.concatenate([group.keys for group in groups]))[::-1]

    def spent(key: int) -> int:
        return sum(
            min(max(int(group.spent[group.through(key)]), low.spent), high.spent)
            for group, low, high in zip(groups, least, most, strict=True)
        )

    first, end = 0, len(keys)  # keys[first] is the best one that no longer fits
    while first < end:
        middle = (first + end) // 2
        first, end = (middle + 1, end) if spent(int(keys[middle])) <= budget else (first, middle)
    before = int(keys[first - 1]) if first else int(keys[0]) + 1
    return before, int(keys[first]) if first < len(keys) else None, spent(before)


def _reaches(groups: list[_Group], read: Read | None) -> tuple[list[_Reach], list[_Reach]]:
    """Find the least and the most of each group: in whole bins, or to the very document."""
    if read is None:
        least = [_Reach.of(group, int(np.searchsorted(group.spent, group.floor, side="left"))) for group in groups]
        most = [
            _Reach.of(group, int(np.searchsorted(group.spent, group.ceiling, side="right")) - 1) for group in groups
        ]
        return least, most
    coarse = [limit for owner, group in enumerate(groups) for limit in _limits(owner, group)]
    wanted = [{_bin(limit.key) for limit in coarse if limit.owner == i and limit.is_short} for i in range(len(groups))]
    groups = _looked_into(groups, wanted, read)
    limits = [limit for owner, group in enumerate(groups) for limit in _limits(owner, group)]
    if short := [limit for limit in limits if limit.is_short]:
        for tied in _tied(groups, {limit.key for limit in short}, read):
            for limit in short:
                limit.take(tied.of(limit.owner, limit.key))
    reaches = [_Reach(limit.cut, limit.spent) for limit in limits]
    return reaches[0::2], reaches[1::2]


@dataclass(frozen=True)
class _Tied:
    """Documents with one of some scores, (n,) each, in the pool's order."""

    owners: NDArray[np.int64]
    keys: NDArray[np.int64]
    parts: NDArray[np.int64]
    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def take(self, which: NDArray[np.int64]) -> _Tied:
        """Take these alone."""
        return _Tied(self.owners[which], self.keys[which], self.parts[which], self.rows[which], self.sizes[which])

    def of(self, owner: int, key: int) -> _Tied:
        """Take a group's with a score."""
        return self.take(np.flatnonzero((self.owners == owner) & (self.keys == key)))

    def costs(self, unit: str) -> NDArray[np.int64]:
        """Count each as one, or by its size."""
        return self.sizes if unit == "size" else np.ones(len(self.rows), dtype=np.int64)


@dataclass
class _Limit:
    """A floor or ceiling on the way to its place: the cut so far, and what that comes to.

    Attributes:
        key: of what comes next.
        is_short: True while the limit leaves room, or asks for more.
    """

    owner: int
    group: _Group
    of_floor: bool
    amount: int
    key: int
    cut: Cut
    spent: int
    is_short: bool

    def take(self, next: _Tied) -> None:
        """Go on with these documents: to the one that reaches the floor, or before the one that the ceiling forbids."""
        if not self.is_short or not len(next.rows):
            return
        total = self.spent + np.cumsum(next.costs(self.group.unit))
        count = int(np.searchsorted(total, self.amount, side="left" if self.of_floor else "right"))
        count = min(count + self.of_floor, len(total))
        if count:
            self.spent = int(total[count - 1])
            self.cut = _further(self.cut, next.take(np.arange(count)))
        self.is_short = count == len(total) and self.spent < self.amount


def _limits(owner: int, group: _Group) -> Iterator[_Limit]:
    """Yield floor and ceiling of a group, as far as whole bins or scores go."""
    for of_floor, amount in ((True, group.floor), (False, group.ceiling)):
        count = int(np.searchsorted(group.spent, amount, side="right")) - 1
        if of_floor and group.spent[count] == amount:  # of bins that cost nothing, none
            count = int(np.searchsorted(group.spent, amount, side="left"))
        spent, is_short = int(group.spent[count]), bool(group.spent[count] < amount)
        key = int(group.keys[count]) if is_short else 0
        yield _Limit(owner, group, of_floor, amount, key, group.cut(count), spent, is_short)


def _looked_into(groups: list[_Group], wanted: list[set[int]], read: Read) -> list[_Group]:
    """Return the groups with scores in place of these bins of each."""
    bins = {bin for of_group in wanted for bin in of_group}
    if not bins:
        return groups

    def by_score(table: pa.Table) -> pa.Table:
        keys, ones = keys_of(table["score"].to_numpy()), np.ones(len(table), dtype=np.int64)
        return pa.table([table["domain"], keys, ones, table["size"]], schema=SCHEMA)

    names = [group.name for group in groups if group.name is not None]
    found = added(relabelled(map(by_score, read(bins)), names))
    return [
        group.with_scores(of_group, _of_group(found, group.name))
        for group, of_group in zip(groups, wanted, strict=True)
    ]


def _tied(groups: list[_Group], keys: set[int], read: Read) -> Iterator[_Tied]:
    """Read all documents that have one of these scores."""
    names = pa.array([group.name for group in groups if group.name is not None], pa.string())
    for table in read({_bin(key) for key in keys}):
        found = keys_of(table["score"].to_numpy()).astype(np.int64)
        owners = pc.fill_null(pc.index_in(table["domain"], value_set=names), len(names)).to_numpy().astype(np.int64)
        columns = (table[name].to_numpy() for name in ("part", "row", "size"))
        yield _Tied(owners, found, *columns).take(np.flatnonzero(np.isin(found, sorted(keys))))


def _further(made: Cut, taken: _Tied) -> Cut:
    """Extend the cut by these documents, which come next and have one score."""
    return replace(
        made,
        last=(score_of(int(taken.keys[-1])), int(taken.parts[-1]), int(taken.rows[-1])),
        documents=made.documents + len(taken.rows),
        size=made.size + int(taken.sizes.sum()),
    )


def _clipped(group: _Group, low: _Reach, high: _Reach, key: int) -> Cut:
    """Take all from `key` on, but no less than the floor and no more than the ceiling."""
    count = group.through(key)
    spent = int(group.spent[count])
    return low.cut if spent <= low.spent else high.cut if spent >= high.spent else group.cut(count)


def _one_by_one(
    groups: list[_Group],
    least: list[_Reach],
    most: list[_Reach],
    cuts: list[Cut],
    read: Read,
    left: int,
    before: int,
    beyond: int,
) -> list[Cut]:
    """Take documents of the score that did not fit as a whole, in order, while they fit."""
    there = [int(group.documents[group.keys == beyond].sum()) for group in groups]
    if sum(there) < 2:
        return cuts
    cuts, seen = list(cuts), [int(group.documents[: group.through(before)].sum()) for group in groups]
    for tied in _tied(groups, {beyond}, read):
        allowed = np.zeros(len(tied.rows), dtype=bool)
        for owner, (low, high) in enumerate(zip(least, most, strict=True)):
            of = np.flatnonzero(tied.owners == owner)
            start, end = (max(reach.cut.documents - seen[owner], 0) for reach in (low, high))
            allowed[of[start:end]] = True
            seen[owner] += len(of)
        nexts = tied.take(np.flatnonzero(allowed))
        total = np.cumsum(nexts.costs(groups[0].unit))
        count = int(np.searchsorted(total, left, side="right"))
        taken = nexts.take(np.arange(count))
        for owner in np.unique(taken.owners).tolist():
            cuts[owner] = _further(cuts[owner], taken.of(owner, beyond))
        if count < len(total):
            break
        left -= int(total[-1]) if count else 0
    return cuts
