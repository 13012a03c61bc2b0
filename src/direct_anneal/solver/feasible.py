"""The selections that are allowed: size, budgets, quotas and forced samples, checked on whole samples.

N samples, K selected, m bands; a stiff cost, s size (1, or the sample's tokens), c gain, μ multipliers of the rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack

from direct_anneal.solver.problem import Linear, Quota, SelectionProblem

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

ROUNDING = 5e-13  # relative: sums of costs in another order differ by less; twice this is what budgets are met up to
_SAMPLED, _SAMPLE = 32_768, 4_096  # from so many values on a sample of so many pays


@dataclass(frozen=True)
class Relaxed:
    """The optimum of one linear problem, in fractions of samples.

    Attributes:
        weights: (N,), the optimum.
        value: no selection has a larger Σ c_i w_i; the optimum, up to rounding.
        multipliers: μ, one for each of the polytope's `rows`: the gain that a unit of its limit is worth (negative
            for a floor).
        rounding: makes whole samples of it.
    """

    weights: Float
    value: float
    multipliers: Float
    rounding: Callable[[], Mask]

    @cached_property
    def chosen(self) -> Mask:
        """(N,) bool: a feasible selection near the optimum."""
        return self.rounding()


@dataclass(frozen=True)
class Rows:
    """Constraints lower ≤ A w ≤ upper beside size and forced samples; A has a row for each, and N columns.

    The first `num_budgets` are budgets, then come groups with a floor or a ceiling, and at last `num_linear` sums of
    any sign.
    """

    matrix: csc_array
    lower: Float
    upper: Float
    names: tuple[str, ...]
    num_budgets: int
    num_linear: int = 0

    @property
    def limits(self) -> Float:
        """The upper limit, or the lower one where there is no other. Sums of any sign have none to scale by: 0."""
        limits = np.where(np.isfinite(self.upper), self.upper, self.lower)
        limits[len(limits) - self.num_linear :] = 0.0
        return limits

    @property
    def means(self) -> Float:
        """Mean magnitude of each row's entries; 1 where all are 0."""
        means = np.asarray(abs(self.matrix).sum(axis=1)).ravel() / self.matrix.shape[1]
        return np.where(means > 0, means, 1.0)


@dataclass(frozen=True)
class Grouping:
    """A quota by number: group g of sample i is codes[i], the last group is everyone else's.

    `weight` is what one sample counts, shape (N,); `floors` and `ceilings` have shape (G,).
    """

    codes: NDArray[np.intp]
    weight: Float
    floors: Float
    ceilings: Float
    names: tuple[str, ...]
    unit: str

    @classmethod
    def of(cls, quota: Quota, weight: Float) -> Grouping:
        labels = quota.named()
        given = np.asarray(quota.groups)
        codes = np.full(len(given), len(labels), dtype=np.intp)
        for code, label in enumerate(labels):
            codes[given == label] = code
        return cls(
            codes,
            weight,
            np.array([*(quota.floors.get(label, 0.0) for label in labels), 0.0]),
            np.array([*(quota.ceilings.get(label, np.inf) for label in labels), np.inf]),
            tuple(f"{quota.kind} {label}" for label in labels),
            quota.unit,
        )

    def totals(self, chosen: Mask) -> Float:
        """Count the chosen of each group, shape (G,); integers, so exact."""
        return np.bincount(self.codes[chosen], self.weight[chosen], len(self.floors)).astype(np.float64)


@dataclass(frozen=True)
class Sum:
    """A `Linear` limit, widened by what sums in another order may differ by."""

    values: Float
    floor: float
    ceiling: float
    name: str

    @classmethod
    def of(cls, limit: Linear, count: float) -> Sum:
        values = np.asarray(limit.values, dtype=np.float64)
        slack = 2 * ROUNDING * count * float(np.abs(values).mean())
        floor, ceiling = (float(one) for one in (limit.floor, limit.ceiling))
        return cls(values, floor - slack, ceiling + slack, limit.name)

    def holds(self, total: Any) -> Any:
        """Tell whether a total, or each of several, lies within."""
        return (self.floor <= total) & (total <= self.ceiling)


@dataclass(frozen=True)
class Totals:
    """Amounts that a selection uses: of each finite budget, of tokens, of each grouping's groups, of each sum."""

    costs: list[float]
    size: float
    groups: list[Float]
    linear: list[float]


class Polytope(ABC):
    """The feasible set: built once, maximised over many times.

    Args:
        problem: everything but its features is read.

    Attributes:
        least_cost: the least feasible budget; shape (m,) where there are bands.
        is_cheap: linear problems take milliseconds, so that more of them can be afforded.
    """

    least_cost: Any
    is_cheap: bool

    def __init__(self, problem: SelectionProblem) -> None:
        self.cost = np.asarray(problem.stiff_cost, dtype=np.float64).reshape(problem.features.shape[0], -1)  # (N, m)
        self.budgets = np.atleast_1d(np.asarray(problem.budget, dtype=np.float64)) * (1 + ROUNDING)
        num_samples = len(self.cost)
        order = np.arange(num_samples) if problem.tie_order is None else np.asarray(problem.tie_order)
        self.by_tie = np.argsort(order, kind="stable")
        self.size: Float | None = None
        if problem.num_selected is not None:
            self.capacity = float(problem.num_selected)
        else:
            assert problem.token_budget is not None
            self.size = np.asarray(problem.num_tokens, dtype=np.float64)
            self.capacity = float(problem.token_budget)
        self._count = int(problem.num_selected or 0)
        self.place = np.empty(num_samples, dtype=np.intp)
        self.place[self.by_tie] = np.arange(num_samples)
        self.forced_in, self.forced_out = problem.mask("forced_in"), problem.mask("forced_out")
        self.free = self.by_tie[~(self.forced_in | self.forced_out)[self.by_tie]]
        ones = np.ones(num_samples)
        self.groupings = [
            Grouping.of(quota, ones if quota.unit == "samples" else np.asarray(problem.num_tokens, dtype=np.float64))
            for quota in problem.all_quotas
        ]
        self.linear = [Sum.of(limit, self.capacity / float(self.weight.mean())) for limit in problem.linear]

    @abstractmethod
    def maximise(self, gain: Float, *, full: bool = True, after: Relaxed | None = None) -> Relaxed:
        """Return the linear problem's optimum: maximise Σ c_i w_i over fractions of samples.

        Args:
            gain: c, shape (N,), finite.
            full: use the token budget up, as a selection shall. Otherwise it may leave room, as a selection of whole
                samples may have to; only then is the value a bound. By samples there is no difference.
            after: the answer for a gain that was much like this one: where to look first.
        """

    @property
    def weight(self) -> Float:
        """s, shape (N,): what of the capacity a sample takes."""
        return np.ones(len(self.cost)) if self.size is None else self.size

    @cached_property
    def rows(self) -> Rows:
        """Budgets, then the groups that have a floor or a ceiling. Memory: N (m + quotas) numbers."""
        bounded = np.flatnonzero(np.isfinite(self.budgets))
        names = [band_name(int(j), len(self.budgets)) for j in bounded]
        parts = [csr_array(np.ascontiguousarray(self.cost[:, bounded].T))]
        lower, upper = [-np.inf] * len(bounded), list(self.budgets[bounded])
        for group in self.groupings:
            count = len(group.names)
            named = np.flatnonzero(group.codes < count)
            entries = (group.weight[named], (group.codes[named], named))
            parts.append(csr_array(entries, shape=(count, len(self.cost))))
            names += group.names
            lower += list(group.floors[:count])
            upper += list(group.ceilings[:count])
        for limit in self.linear:
            parts.append(csr_array(limit.values[None]))
            names.append(limit.name)
            lower.append(limit.floor)
            upper.append(limit.ceiling)
        matrix = csc_array(vstack(parts))
        return Rows(matrix, np.array(lower), np.array(upper), tuple(names), len(bounded), len(self.linear))

    def reduced(self, gain: Float, multipliers: Float) -> Float:
        """Return c − Aᵀμ, shape (N,)."""
        return gain - self.rows.matrix.T @ multipliers if len(multipliers) else gain

    def max_count(self) -> float:
        """Return the largest Σ w_i for this size and these forced samples, which bounds ‖w‖²."""
        return float(self.fill(np.ones(len(self.cost))).sum())

    def fill(self, value: Float) -> Float | Mask:
        """Return the weights that fill capacity by value per size, ties by order.

        By samples a mask, a byte a sample; by tokens float64, and the last one may be fractional.
        """
        if self.size is None:
            return self._largest(value)
        weights = self.forced_in.astype(np.float64)
        room = self.capacity - float(self.size[self.forced_in].sum())
        density = (value / self.size)[self.free]
        ranked = self.free[np.argsort(-density, kind="stable")]
        before = np.cumsum(self.size[ranked]) - self.size[ranked]
        weights[ranked] = np.clip((room - before) / self.size[ranked], 0.0, 1.0)
        return weights

    def _largest(self, value: Float) -> Mask:
        """Choose forced samples, and of the free ones those where value is largest, K in all; ties by order."""
        if len(self.free) < len(value):
            value = np.where(self.forced_in, np.inf, np.where(self.forced_out, -np.inf, value))
        threshold = nth_largest(value, self._count)
        taken: Mask = value >= threshold
        if (surplus := np.count_nonzero(taken) - self._count) > 0:
            equal = np.flatnonzero(value == threshold)
            taken[equal[np.argsort(self.place[equal])[len(equal) - surplus :]]] = False
        return taken

    def price(self, value: Float, *, full: bool) -> float:
        """Return ν, what a unit of capacity is worth to a filling by value: what its last sample gives for it.

        Where the filling need not be full it is at least 0.
        """
        if not len(self.free):
            return 0.0
        density = (value / self.weight)[self.free]
        taken = self.fill(value)[self.free] > 0
        price = float(density[taken].min() if taken.any() else density.max())
        return price if full or self.size is None else max(price, 0.0)

    def feasible(self, chosen: Mask) -> bool:
        """True if a selection meets every constraint: size, budgets, floors, ceilings, forced samples."""
        used = chosen.sum() == self.capacity if self.size is None else self.size[chosen].sum() <= self.capacity
        return bool(
            used
            and all(
                not np.isfinite(budget) or math.fsum(cost[chosen]) <= budget * (1 + ROUNDING)
                for cost, budget in self._priced()
            )
            and chosen[self.forced_in].all()
            and not chosen[self.forced_out].any()
            and all(
                np.all((group.floors <= totals) & (totals <= group.ceilings))
                for group, totals in ((group, group.totals(chosen)) for group in self.groupings)
            )
            and all(limit.holds(math.fsum(limit.values[chosen])) for limit in self.linear)
        )

    def totals(self, chosen: Mask) -> Totals:
        """Return what a selection uses of each limit."""
        return Totals(
            [float(cost[chosen].sum()) if np.isfinite(budget) else 0.0 for cost, budget in self._priced()],
            0.0 if self.size is None else float(self.size[chosen].sum()),
            [group.totals(chosen) for group in self.groupings],
            [float(limit.values[chosen].sum()) for limit in self.linear],
        )

    def swapped(self, totals: Totals, i: int, o: int) -> Totals:
        """Return the totals after i came in for o."""
        groups = []
        for group, total in zip(self.groupings, totals.groups, strict=True):
            changed = total.copy()
            changed[group.codes[i]] += group.weight[i]
            changed[group.codes[o]] -= group.weight[o]
            groups.append(changed)
        return Totals(
            [total + float(cost[i] - cost[o]) for total, (cost, _) in zip(totals.costs, self._priced(), strict=True)],
            0.0 if self.size is None else totals.size + float(self.size[i] - self.size[o]),
            groups,
            [t + float(limit.values[i] - limit.values[o]) for t, limit in zip(totals.linear, self.linear, strict=True)],
        )

    def exchanges(self, totals: Totals, ins: NDArray[np.intp], outs: NDArray[np.intp]) -> Mask:
        """Mark feasible swaps of unforced samples, up to rounding, shape (len(ins), len(outs)).

        Args:
            totals: of the selection before the swap.
        """
        allowed = np.ones((len(ins), len(outs)), dtype=np.bool_)
        for used, (cost, budget) in zip(totals.costs, self._priced(), strict=True):
            if np.isfinite(budget):
                allowed &= cost[ins][:, None] - cost[outs][None, :] <= budget - used
        if self.size is not None:
            allowed &= self.size[ins][:, None] - self.size[outs][None, :] <= self.capacity - totals.size
        for group, total in zip(self.groupings, totals.groups, strict=True):
            gain, loss = group.weight[ins][:, None], group.weight[outs][None, :]
            to, of = group.codes[ins][:, None], group.codes[outs][None, :]
            same = to == of
            allowed &= total[to] + gain - np.where(same, loss, 0.0) <= group.ceilings[to]
            allowed &= total[of] - loss + np.where(same, gain, 0.0) >= group.floors[of]
        for limit, used in zip(self.linear, totals.linear, strict=True):
            change = limit.values[ins][:, None] - limit.values[outs][None, :]
            allowed &= limit.holds(used + change)
        return allowed

    def _priced(self) -> Iterator[tuple[Float, float]]:
        """List costs and budget of each band."""
        return zip(self.cost.T, self.budgets.tolist(), strict=True)

    def complete(self, chosen: Mask, value: Float) -> Mask:
        """Add what still fits by tokens, best value per token first, until nothing does."""
        if self.size is None:
            return chosen
        chosen = chosen.copy()
        density = value / self.size
        while True:  # few turns: what is left after a greedy filling is less than one sample, or two
            fits = ~chosen & ~self.forced_out & (self.size <= self.capacity - self.size[chosen].sum())
            for cost, budget in zip(self.cost.T, self.budgets, strict=True):
                fits &= cost <= budget - cost[chosen].sum()
            for group in self.groupings:
                fits &= group.weight <= (group.ceilings - group.totals(chosen))[group.codes]
            for limit in self.linear:
                fits &= limit.holds(limit.values[chosen].sum() + limit.values)
            if not fits.any():
                return chosen
            candidates = self.by_tie[fits[self.by_tie]]
            chosen[candidates[np.argmax(density[candidates])]] = True


def band_name(band: int, count: int) -> str:
    """Name a budget in messages."""
    return "the budget" if count == 1 else f"the budget of band {band + 1}"


def nth_largest(value: Float, count: int) -> float:
    """Return the count-th largest value. O(N): in large arrays a sample brackets it, and only what lies between is
    sorted.
    """
    if len(value) >= _SAMPLED:
        sample = np.sort(value[:: len(value) // _SAMPLE])
        place = len(sample) * (1 - count / len(value))
        reach = 3 * np.sqrt(len(sample)) / 2  # three standard deviations, at most
        low, high = sample[np.clip([int(place - reach), int(place + reach)], 0, len(sample) - 1)]
        above = int(np.count_nonzero(value > high))
        between = value[(value >= low) & (value <= high)]
        if above < count <= above + len(between):
            value, count = between, count - above
    value = value.copy()
    value.partition(len(value) - count)
    return float(value[len(value) - count])


def largest(value: Float, count: int, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Take the `count` positions of `order` with the largest `value`, in that order; ties go to the first. O(N)."""
    if count == 0:
        return order[:0]
    ordered = value[order]
    threshold = nth_largest(ordered, count)
    taken: Mask = ordered > threshold
    taken[np.flatnonzero(ordered == threshold)[: count - int(taken.sum())]] = True
    return order[taken]
