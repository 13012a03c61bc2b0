"""The linear problem over the selection polytope, solved exactly with one multiplier.

N samples, K selected; a stiff cost, c gain, s size (1, or the sample's tokens), τ budget, μ its multiplier.

    maximise Σ c_i w_i   subject to   0 ≤ w_i ≤ 1,  Σ s_i w_i = capacity,  Σ a_i w_i ≤ τ.

For a fixed μ ≥ 0 the Lagrangian Σ (c_i − μ a_i) w_i is maximal when capacity is filled in the order of
(c_i − μ a_i) / s_i. Its maximum is convex and piecewise linear in μ; between a filling over the budget and one
within it, the next μ is where their two lines meet. When nothing lies above that crossing, both fillings are
optimal for the same μ, and so is any mixture: the one that uses the budget up solves the problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.selection.problem import InfeasibleBudgetError, SelectionProblem

Float = NDArray[np.float64]

ROUNDING = 5e-13  # relative: sums of costs in another order differ by less; twice this is what budgets are met up to


@dataclass(frozen=True)
class LinearSolution:
    """The optimum of one linear problem, and the best rounding of it that we know.

    Attributes:
        weights: (N,), the exact optimum; at most two weights are fractional when K samples are asked for and
            gains are in general position.
        chosen: (N,) bool: a feasible selection near it.
        value: Σ c_i w_i at the optimum, which no selection exceeds.
        multiplier: μ, the gain that a unit of budget is worth.
    """

    weights: Float
    chosen: NDArray[np.bool_]
    value: float
    multiplier: float


class Polytope:
    """The feasible set: built once, maximised over many times.

    Args:
        problem: its costs, size and budget are read, its features are not.

    Raises:
        InfeasibleBudgetError: not even the cheapest filling stays within the budget.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        self.cost = np.asarray(problem.stiff_cost, dtype=np.float64)
        self.budget = problem.budget * (1 + ROUNDING)
        order = np.arange(len(self.cost)) if problem.tie_order is None else np.asarray(problem.tie_order)
        self.by_tie = np.argsort(order, kind="stable")
        if problem.num_selected is not None:
            self.size: Float | None = None
            self.capacity = float(problem.num_selected)
        else:
            assert problem.num_tokens is not None
            assert problem.token_budget is not None
            self.size = np.asarray(problem.num_tokens, dtype=np.float64)
            self.capacity = float(problem.token_budget)
        self.least_cost = float(self._fill(-self.cost) @ self.cost)
        if self.size is not None:  # the cheapest filling may split a sample; some sample must fit whole
            self.least_cost = max(self.least_cost, float(self.cost[self.size <= self.capacity].min()))
        if self.least_cost > self.budget:
            raise InfeasibleBudgetError(problem.budget, self.least_cost)

    def max_count(self) -> float:
        """The largest Σ w_i over the polytope without its budget, which bounds ‖w‖²."""
        return float(self._fill(np.ones(len(self.cost))).sum())

    def maximise(self, gain: Float) -> LinearSolution:
        """Solve the linear problem exactly. Cost: about ten partial sorts, O(N) each (O(N log N) with tokens).

        Args:
            gain: c, shape (N,), finite.
        """
        over, within, value, multiplier = self._dual(gain, full=True)
        weights = within if over is within else self._mix(over, within)
        return LinearSolution(weights, self._round(over, within, gain, multiplier), value, multiplier)

    def bound(self, gain: Float) -> float:
        """What Σ c_i over no selection exceeds. A selection by tokens may leave room, so that filling up is not
        asked for here: less can be more where gains are negative."""
        return self._dual(gain, full=self.size is None)[2]

    def complete(self, chosen: NDArray[np.bool_], value: Float) -> NDArray[np.bool_]:
        """By tokens: with what still fits added, best value per token first, until nothing does."""
        if self.size is None:
            return chosen
        chosen = chosen.copy()
        density = value / self.size
        while True:  # few turns: what is left after a greedy filling is less than one sample, or two
            room = self.capacity - self.size[chosen].sum()
            budget = self.budget - self.cost[chosen].sum()
            fits = ~chosen & (self.size <= room) & (self.cost <= budget)
            if not fits.any():
                return chosen
            candidates = self.by_tie[fits[self.by_tie]]
            chosen[candidates[np.argmax(density[candidates])]] = True

    def feasible(self, chosen: NDArray[np.bool_]) -> bool:
        """Whether an integer selection keeps both promises: its size, and its budget."""
        used = chosen.sum() == self.capacity if self.size is None else self.size[chosen].sum() <= self.capacity
        return bool(used and math.fsum(self.cost[chosen]) <= self.budget * (1 + ROUNDING))

    def _dual(self, gain: Float, *, full: bool) -> tuple[Float, Float, float, float]:
        """Two optimal fillings on either side of the budget (or one, twice), the optimum and its multiplier.

        `full` fillings use capacity up; others leave out what gains nothing.
        """

        def fill(reduced: Float) -> Float:
            return self._fill(reduced) if full else self._fill(reduced) * (reduced > 0)

        over = fill(gain)
        if over @ self.cost <= self.budget:
            return over, over, float(over @ gain), 0.0
        within = fill(-self.cost)
        while True:
            rise = (over - within) @ gain
            run = (over - within) @ self.cost
            multiplier = max(0.0, float(rise / run))
            reduced = gain - multiplier * self.cost
            best = fill(reduced)
            above = best @ reduced - max(over @ reduced, within @ reduced)
            # Rounding of the three sums is the only reason left for a rise this small.
            if above <= 1e-12 * (np.abs(reduced) @ best + np.abs(reduced) @ within):
                return over, within, float(best @ reduced + multiplier * self.budget), multiplier
            if best @ self.cost > self.budget:
                over = best
            else:
                within = best

    def _fill(self, value: Float) -> Float:
        """The weights that fill capacity by value per size, ties by order; the last one may be fractional."""
        weights = np.zeros(len(value))
        if self.size is None:
            weights[largest(value, int(self.capacity), self.by_tie)] = 1.0
            return weights
        density = (value / self.size)[self.by_tie]
        ranked = self.by_tie[np.argsort(-density, kind="stable")]
        before = np.cumsum(self.size[ranked]) - self.size[ranked]
        weights[ranked] = np.clip((self.capacity - before) / self.size[ranked], 0.0, 1.0)
        return weights

    def _mix(self, over: Float, within: Float) -> Float:
        """The mixture of two optimal fillings that uses the budget up."""
        if self.size is None:
            # Both hold K samples whole. Exchange them pair by pair, and split only the pair that crosses.
            swaps = self._exchange(over, within)
            used = within @ self.cost + np.cumsum([self.cost[i] - self.cost[o] for i, o in swaps])
            crossing = min(int(np.sum(np.cumsum(used > self.budget) == 0)), len(swaps) - 1)
            weights = within.copy()
            for gained, lost in swaps[:crossing]:
                weights[gained], weights[lost] = 1.0, 0.0
            gained, lost = swaps[crossing]
            share = (self.budget - weights @ self.cost) / (self.cost[gained] - self.cost[lost])
            share = min(max(share, 0.0), 1.0)  # rounding may step a hair beyond
            weights[gained], weights[lost] = share, 1.0 - share
            return weights
        share = (self.budget - within @ self.cost) / ((over - within) @ self.cost)
        return share * over + (1.0 - share) * within

    def _exchange(self, over: Float, within: Float) -> list[tuple[int, int]]:
        gained = self.by_tie[(over > within)[self.by_tie]]
        lost = self.by_tie[(over < within)[self.by_tie]]
        # Cheapest gains first, against the dearest losses: the most exchanges fit before the budget is used up.
        gained = gained[np.argsort(self.cost[gained], kind="stable")]
        lost = lost[np.argsort(-self.cost[lost], kind="stable")]
        return [(int(i), int(o)) for i, o in zip(gained, lost, strict=True)]

    def _round(self, over: Float, within: Float, gain: Float, multiplier: float) -> NDArray[np.bool_]:
        """An integer selection near the optimum that keeps size and budget."""
        if self.size is not None:
            reduced = gain - multiplier * self.cost
            return self.complete(np.minimum(over, within) >= 1.0, reduced)
        chosen = within > 0.5
        used = float(within @ self.cost)
        for gained, lost in self._exchange(over, within):
            used += self.cost[gained] - self.cost[lost]
            if used > self.budget:
                break
            chosen[gained], chosen[lost] = True, False
        return chosen


def largest(value: Float, count: int, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those `count` positions of `order` where `value` is largest, in that order; among equals the first. O(N)."""
    ordered = value[order]
    threshold = np.partition(ordered, len(ordered) - count)[len(ordered) - count]
    taken: NDArray[np.bool_] = ordered > threshold
    taken[np.flatnonzero(ordered == threshold)[: count - int(taken.sum())]] = True
    return order[taken]
