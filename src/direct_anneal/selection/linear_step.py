"""The linear problem over the selection polytope, solved exactly with one multiplier.

N samples, K selected; a stiff cost, c gain, s size (1, or the sample's tokens), τ budget, μ its multiplier.

    maximise Σ c_i w_i   subject to   0 ≤ w_i ≤ 1,  Σ s_i w_i = capacity,  Σ a_i w_i ≤ τ.

For a fixed μ ≥ 0 the Lagrangian Σ (c_i − μ a_i) w_i is maximal when capacity is filled in the order of
(c_i − μ a_i) / s_i. Its maximum is convex and piecewise linear in μ; between a filling over the budget and one
within it, the next μ is where their two lines meet. When nothing lies above that crossing, both fillings are
optimal for the same μ, and so is any mixture: the one that uses the budget up solves the problem.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from direct_anneal.selection.infeasibility import InfeasibleBudgetError, check_amounts
from direct_anneal.selection.polytope import Float, Mask, Polytope, Relaxed
from direct_anneal.selection.problem import SelectionProblem

_CHEAP = 50_000  # samples
_STRIDE = 1.1  # between two guesses of a multiplier
_FEW = 32  # samples: where two fillings differ in no more, crossings end the search soonest


class _Filling(NamedTuple):
    """An optimum for one multiplier: its weights, and what they use of the budget."""

    weights: Float | Mask
    multiplier: float
    used: float


class _Step(NamedTuple):
    """From one filling to another: where they differ, and by how much."""

    positions: NDArray[np.intp]
    amounts: Float

    @classmethod
    def between(cls, start: _Filling, end: _Filling) -> _Step:
        (moved,) = (end.weights != start.weights).nonzero()
        return cls(moved, np.subtract(end.weights[moved], start.weights[moved], dtype=np.float64))

    def of(self, values: Float) -> float:
        """By how much Σ v_i w_i rises."""
        return float(self.amounts @ values[self.positions])

    def size(self, values: Float) -> float:
        """Σ |v_i| over what moves: what rounding is relative to."""
        return float(np.abs(self.amounts) @ np.abs(values[self.positions]))


class OneBudget(Polytope):
    """Size and one budget, the constraints of the paper: one multiplier, found exactly.

    When K samples are asked for and gains are in general position, at most two weights of an optimum are fractional.

    Raises:
        InfeasibleBudgetError: not even the cheapest filling stays within the budget.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        super().__init__(problem)
        self._cost, self._budget = np.ascontiguousarray(self.cost[:, 0]), float(self.budgets[0])
        check_amounts(self)
        self.is_cheap = len(self.cost) <= _CHEAP
        # Written to for every multiplier: fresh memory costs more than what is computed in it.
        self._reduced, self._terms = np.empty_like(self._cost), np.empty_like(self._cost)
        cheapest = self.fill(-self._cost)
        self._cheapest = _Filling(cheapest, np.inf, self._sum(self._cost, cheapest))
        self.least_cost = self._cheapest.used
        if self.size is not None and not self.forced_in.any():
            # The cheapest filling may split a sample; some sample must fit whole.
            fits = self.free[self.size[self.free] <= self.capacity]
            self.least_cost = max(self.least_cost, float(self._cost[fits].min()))
        if self.least_cost > self._budget:
            raise InfeasibleBudgetError(float(np.max(problem.budget)), self.least_cost)

    def maximise(self, gain: Float, *, full: bool = True, after: Relaxed | None = None) -> Relaxed:
        """Solve the linear problem exactly. Cost: about eight fillings, O(N) each (O(N log N) with tokens)."""
        guess = 0.0
        if after is not None and after.value > 0 and len(after.multipliers):
            guess = float(after.multipliers[0] * (gain @ after.weights) / after.value)
        over, within, value, multiplier = self._dual(gain, guess, full=full or self.size is None)
        if self.size is None:
            rounding = partial(self._round, over, within)
        else:  # whole samples, completed by reduced gain
            rounding = partial(self.complete, np.minimum(over.weights, within.weights) >= 1.0, self._reduced.copy())
        multipliers = np.full(int(np.isfinite(self._budget)), multiplier)
        return Relaxed(self._mix(over, within), value, multipliers, rounding)

    def _dual(self, gain: Float, guess: float, *, full: bool) -> tuple[_Filling, _Filling, float, float]:
        """Two optimal fillings on either side of the budget (or one, twice), the optimum and its multiplier.

        The search starts from fillings for multipliers near `guess`, or where that is 0 for none and for infinity.
        `full` fillings use capacity up; others leave out what gains nothing. Leaves the reduced gain, c − μ a, behind.
        """
        reduced = self._reduced

        def fill(multiplier: float) -> _Filling:
            np.multiply(self._cost, -multiplier, out=reduced)
            np.add(reduced, gain, out=reduced)
            weights = self.fill(reduced) if full else self.fill(reduced) * (reduced > 0)
            return _Filling(weights, multiplier, self._sum(self._cost, weights))

        over, within = None, self._cheapest if full else _Filling(np.zeros(len(gain)), np.inf, 0.0)
        for _ in range(2 if guess > 0 else 0):  # one on either side, where the guess is good
            filled = fill(guess)
            if filled.used > self._budget:
                over, guess = filled, guess * _STRIDE
            else:
                within, guess = filled, guess / _STRIDE
        if over is None:
            over = fill(0.0)
            if over.used <= self._budget:
                return over, over, self._sum(gain, over.weights), 0.0
        excess, lack, step = over.used - self._budget, self._budget - within.used, _Step.between(within, over)
        tied, last = False, None
        while True:
            # What is used is nearly smooth where fillings differ in many samples: regula falsi, by the Illinois rule.
            multiplier = over.multiplier + (within.multiplier - over.multiplier) * (excess / (excess + lack))
            crossing = tied or len(step.positions) <= _FEW or not over.multiplier < multiplier < within.multiplier
            best = fill(max(0.0, step.of(gain) / step.of(self._cost)) if crossing else multiplier)
            is_over = best.used > self._budget
            step = _Step.between(within, best) if is_over else _Step.between(best, over)
            if crossing:
                rise = step.of(reduced) if is_over else -step.of(reduced)
                # Rounding of the terms is the only reason left for a rise this small.
                if rise <= 1e-12 * (step.size(gain) + best.multiplier * step.size(self._cost)):
                    value = self._sum(reduced, best.weights) + best.multiplier * self._budget
                    return over, within, value, best.multiplier
            # Where nothing changed, many samples tie at one multiplier, which the crossing finds at once.
            tied = not crossing and best.used in (over.used, within.used)
            if is_over:
                over, excess, lack = best, best.used - self._budget, lack / 2 if last is is_over else lack
            else:
                within, lack, excess = best, self._budget - best.used, excess / 2 if last is is_over else excess
            last = is_over

    def _sum(self, values: Float, weights: Float | Mask) -> float:
        """Σ v_i w_i."""
        np.copyto(self._terms, weights)
        return float(self._terms @ values)

    def _mix(self, over: _Filling, within: _Filling) -> Float:
        """The mixture of two optimal fillings that uses the budget up."""
        if over is within:
            return within.weights.astype(np.float64)
        if self.size is None:
            # Both hold K samples whole. Exchange them pair by pair, and split only the pair that crosses.
            gained, lost, fit = self._exchange(over, within)
            fit = min(fit, len(gained) - 1)
            weights = within.weights.astype(np.float64)
            weights[gained[:fit]], weights[lost[:fit]] = 1.0, 0.0
            share = (self._budget - weights @ self._cost) / (self._cost[gained[fit]] - self._cost[lost[fit]])
            share = min(max(share, 0.0), 1.0)  # rounding may step a hair beyond
            weights[gained[fit]], weights[lost[fit]] = share, 1.0 - share
            return weights
        share = (self._budget - within.used) / _Step.between(within, over).of(self._cost)
        return share * over.weights + (1.0 - share) * within.weights

    def _round(self, over: _Filling, within: _Filling) -> Mask:
        """By samples, an integer selection near the optimum that keeps the budget."""
        gained, lost, fit = self._exchange(over, within)
        chosen = within.weights > 0
        chosen[gained[:fit]], chosen[lost[:fit]] = True, False
        return chosen

    def _exchange(self, over: _Filling, within: _Filling) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
        """By samples, from `within` to `over`, who comes in for whom, pair by pair; and how many the budget allows."""
        step = _Step.between(within, over)
        moved = np.argsort(self._place[step.positions])
        positions, gains = step.positions[moved], step.amounts[moved] > 0
        gained, lost = positions[gains], positions[~gains]
        # Cheapest gains first, against the dearest losses: the most exchanges fit before the budget is used up.
        gained = gained[np.argsort(self._cost[gained], kind="stable")]
        lost = lost[np.argsort(-self._cost[lost], kind="stable")]
        used = within.used + np.cumsum(self._cost[gained] - self._cost[lost])
        return gained, lost, int(np.argmax(np.append(used > self._budget, True)))
