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

from direct_anneal.solver.feasible import Float, Mask, Polytope, Relaxed
from direct_anneal.solver.infeasibility import InfeasibleBudgetError, check_amounts
from direct_anneal.solver.problem import SelectionProblem

_CHEAP = 50_000  # samples
_STRIDE = 1.1  # between two guesses of a multiplier
_FEW = 32  # samples: where two fillings differ in no more, crossings end the search soonest


class _Filling(NamedTuple):
    """An optimum for one multiplier: its weights, and their sums of costs and of gains."""

    weights: Float | Mask
    multiplier: float
    used: float
    gained: float


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
        self._cheapest = cheapest
        self.least_cost = self._sums(cheapest, self._cost)[0]
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
        """Find two optimal fillings on either side of the budget (or one, twice), the optimum and its multiplier.

        The search starts from fillings for multipliers near `guess`, or where that is 0 for none and for infinity.
        `full` fillings use capacity up; others leave out what gains nothing. Leaves the reduced gain, c − μ a, behind.
        """
        reduced = self._reduced

        def fill(multiplier: float) -> _Filling:
            np.multiply(self._cost, -multiplier, out=reduced)
            np.add(reduced, gain, out=reduced)
            weights = self.fill(reduced) if full else self.fill(reduced) * (reduced > 0)
            return _Filling(weights, multiplier, *self._sums(weights, self._cost, gain))

        over, within = None, None
        for _ in range(2 if guess > 0 else 0):  # one on either side, where the guess is good
            filled = fill(guess)
            if filled.used > self._budget:
                over, guess = filled, guess * _STRIDE
            else:
                within, guess = filled, guess / _STRIDE
        if over is None:
            over = fill(0.0)
            if over.used <= self._budget:
                return over, over, over.gained, 0.0
        if within is None:
            least = self._cheapest if full else np.zeros(len(gain))
            within = _Filling(least, np.inf, *self._sums(least, self._cost, gain))
        excess, lack, tied, last = over.used - self._budget, self._budget - within.used, False, None
        while True:
            # What is used is nearly smooth where fillings differ in many samples: regula falsi, by the Illinois rule.
            multiplier = over.multiplier + (within.multiplier - over.multiplier) * (excess / (excess + lack))
            crossing = tied or not over.multiplier < multiplier < within.multiplier or _differ_in_few(over, within)
            if crossing:
                multiplier = (over.gained - within.gained) / (over.used - within.used)
                multiplier = min(max(multiplier, over.multiplier), within.multiplier)  # rounding may step a hair beyond
            best = fill(multiplier)
            if crossing:
                rise = (best.gained - over.gained) - multiplier * (best.used - over.used)
                # Rounding of the sums is the only reason left for a rise this small.
                if rise <= 1e-12 * (self._sums(best.weights, np.abs(gain))[0] + multiplier * best.used):
                    return over, within, best.gained + multiplier * (self._budget - best.used), multiplier
            # Where nothing changed, many samples tie at one multiplier, which the crossing finds at once.
            tied = not crossing and best.used in (over.used, within.used)
            is_over = best.used > self._budget
            if is_over:
                over, excess, lack = best, best.used - self._budget, lack / 2 if last is is_over else lack
            else:
                within, lack, excess = best, self._budget - best.used, excess / 2 if last is is_over else excess
            last = is_over

    def _sums(self, weights: Float | Mask, *values: Float) -> list[float]:
        """Return Σ v_i w_i for each of the values."""
        np.copyto(self._terms, weights)
        return [float(self._terms @ each) for each in values]

    def _mix(self, over: _Filling, within: _Filling) -> Float:
        """Return the mixture of two optimal fillings that uses the budget up."""
        weights, end = within.weights, over.weights
        if self.size is None and np.count_nonzero(weights != end) > 2:
            # Both hold K samples whole. Exchange them pair by pair, and split only the pair that crosses.
            gained, lost, fit = self._exchange(over, within)
            fit = min(fit, len(gained) - 1)
            weights, end = (_swapped(within.weights, gained[:n], lost[:n]) for n in (fit, fit + 1))
        (first,), (last,) = self._sums(weights, self._cost), self._sums(end, self._cost)
        share = (self._budget - first) / (last - first) if last > first else 0.0
        return weights + min(max(share, 0.0), 1.0) * np.subtract(end, weights, dtype=np.float64)

    def _round(self, over: _Filling, within: _Filling) -> Mask:
        """Round to an integer selection near the optimum, by samples, that keeps the budget."""
        gained, lost, fit = self._exchange(over, within)
        return _swapped(within.weights, gained[:fit], lost[:fit])

    def _exchange(self, over: _Filling, within: _Filling) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
        """Pair by samples who of `over` comes in for whom of `within`; return how many the budget allows, too."""
        gained, lost = np.flatnonzero(over.weights > within.weights), np.flatnonzero(over.weights < within.weights)
        # Cheapest gains first, against the dearest losses: the most exchanges fit before the budget is used up.
        gained = gained[np.lexsort((self.place[gained], self._cost[gained]))]
        lost = lost[np.lexsort((self.place[lost], -self._cost[lost]))]
        used = within.used + np.cumsum(self._cost[gained] - self._cost[lost])
        return gained, lost, int(np.argmax(np.append(used > self._budget, True)))


def _differ_in_few(one: _Filling, other: _Filling) -> bool:
    return bool(np.count_nonzero(one.weights != other.weights) <= _FEW)


def _swapped(weights: Float | Mask, gained: NDArray[np.intp], lost: NDArray[np.intp]) -> Mask:
    chosen: Mask = weights > 0
    chosen[gained], chosen[lost] = True, False
    return chosen
