"""The linear problem over the selection polytope, solved exactly with one multiplier.

N samples, K selected; a stiff cost, c gain, s size (1, or the sample's tokens), τ budget, μ its multiplier.

    maximise Σ c_i w_i   subject to   0 ≤ w_i ≤ 1,  Σ s_i w_i = capacity,  Σ a_i w_i ≤ τ.

For a fixed μ ≥ 0 the Lagrangian Σ (c_i − μ a_i) w_i is maximal when capacity is filled in the order of
(c_i − μ a_i) / s_i. Its maximum is convex and piecewise linear in μ; between a filling over the budget and one
within it, the next μ is where their two lines meet. When nothing lies above that crossing, both fillings are
optimal for the same μ, and so is any mixture: the one that uses the budget up solves the problem.
"""

from __future__ import annotations

import numpy as np

from direct_anneal.selection.infeasibility import InfeasibleBudgetError, check_amounts
from direct_anneal.selection.polytope import Float, Mask, Polytope, Relaxed
from direct_anneal.selection.problem import SelectionProblem

_STRIDE = 1.1  # between two guesses of a multiplier


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
        self._cheapest = self.fill(-self._cost)
        self.least_cost = float(self._cheapest @ self._cost)
        if self.size is not None and not self.forced_in.any():
            # The cheapest filling may split a sample; some sample must fit whole.
            fits = self.free[self.size[self.free] <= self.capacity]
            self.least_cost = max(self.least_cost, float(self._cost[fits].min()))
        if self.least_cost > self._budget:
            raise InfeasibleBudgetError(float(np.max(problem.budget)), self.least_cost)

    def maximise(self, gain: Float, *, full: bool = True, after: Relaxed | None = None) -> Relaxed:
        """Solve the linear problem exactly. Cost: about ten partial sorts, O(N) each (O(N log N) with tokens)."""
        guess = 0.0
        if after is not None and after.value > 0 and len(after.multipliers):
            guess = float(after.multipliers[0] * (gain @ after.weights) / after.value)
        over, within, value, multiplier = self._dual(gain, guess, full=full or self.size is None)
        weights = within if over is within else self._mix(over, within)
        multipliers = np.full(int(np.isfinite(self._budget)), multiplier)
        return Relaxed(weights, value, multipliers, lambda: self._round(over, within, gain, multiplier))

    def _dual(self, gain: Float, guess: float, *, full: bool) -> tuple[Float, Float, float, float]:
        """Two optimal fillings on either side of the budget (or one, twice), the optimum and its multiplier.

        The search starts from fillings for multipliers near `guess`, or where that is 0 for none and for infinity.
        `full` fillings use capacity up; others leave out what gains nothing.
        """

        def fill(reduced: Float) -> Float:
            return self.fill(reduced) if full else self.fill(reduced) * (reduced > 0)

        over = fill(gain)
        if over @ self._cost <= self._budget:
            return over, over, float(over @ gain), 0.0
        within = self._cheapest if full else fill(-self._cost)
        for _ in range(2 if guess > 0 else 0):  # one on either side, where the guess is good
            filled = fill(gain - guess * self._cost)
            if filled @ self._cost > self._budget:
                over, guess = filled, guess * _STRIDE
            else:
                within, guess = filled, guess / _STRIDE
        while True:
            rise = (over - within) @ gain
            run = (over - within) @ self._cost
            multiplier = max(0.0, float(rise / run))
            reduced = gain - multiplier * self._cost
            best = fill(reduced)
            above = best @ reduced - max(over @ reduced, within @ reduced)
            # Rounding of the three sums is the only reason left for a rise this small.
            if above <= 1e-12 * (np.abs(reduced) @ best + np.abs(reduced) @ within):
                return over, within, float(best @ reduced + multiplier * self._budget), multiplier
            if best @ self._cost > self._budget:
                over = best
            else:
                within = best

    def _mix(self, over: Float, within: Float) -> Float:
        """The mixture of two optimal fillings that uses the budget up."""
        if self.size is None:
            # Both hold K samples whole. Exchange them pair by pair, and split only the pair that crosses.
            swaps = self._exchange(over, within)
            used = within @ self._cost + np.cumsum([self._cost[i] - self._cost[o] for i, o in swaps])
            crossing = min(int(np.sum(np.cumsum(used > self._budget) == 0)), len(swaps) - 1)
            weights = within.copy()
            for gained, lost in swaps[:crossing]:
                weights[gained], weights[lost] = 1.0, 0.0
            gained, lost = swaps[crossing]
            share = (self._budget - weights @ self._cost) / (self._cost[gained] - self._cost[lost])
            share = min(max(share, 0.0), 1.0)  # rounding may step a hair beyond
            weights[gained], weights[lost] = share, 1.0 - share
            return weights
        share = (self._budget - within @ self._cost) / ((over - within) @ self._cost)
        return share * over + (1.0 - share) * within

    def _exchange(self, over: Float, within: Float) -> list[tuple[int, int]]:
        gained = self.by_tie[(over > within)[self.by_tie]]
        lost = self.by_tie[(over < within)[self.by_tie]]
        # Cheapest gains first, against the dearest losses: the most exchanges fit before the budget is used up.
        gained = gained[np.argsort(self._cost[gained], kind="stable")]
        lost = lost[np.argsort(-self._cost[lost], kind="stable")]
        return [(int(i), int(o)) for i, o in zip(gained, lost, strict=True)]

    def _round(self, over: Float, within: Float, gain: Float, multiplier: float) -> Mask:
        """An integer selection near the optimum that keeps size and budget."""
        if self.size is not None:
            reduced = gain - multiplier * self._cost
            return self.complete(np.minimum(over, within) >= 1.0, reduced)
        chosen = within > 0.5
        used = float(within @ self._cost)
        for gained, lost in self._exchange(over, within):
            used += self._cost[gained] - self._cost[lost]
            if used > self._budget:
                break
            chosen[gained], chosen[lost] = True, False
        return chosen
