"""The linear problem under several coupling constraints: a budget for each band, floors and ceilings.

N samples; c gain, s size, rows lower ≤ A w ≤ upper with multipliers μ, ν the price of a unit of capacity.

    maximise Σ c_i w_i   subject to   0 ≤ w_i ≤ 1,  Σ s_i w_i = capacity,  lower ≤ A w ≤ upper.

At an optimum w_i is 1 where the reduced gain c_i − (Aᵀμ)_i − ν s_i is positive and 0 where it is negative, so that
only the few samples whose reduced gain is about 0, the core, need a linear program. HiGHS finds μ and ν from a sample
of the pool; those far from 0 are settled, and the rest is sampled again, until the core is small. It is solved whole,
and every settled sample is then checked against the core's own multipliers; those that turn out wrong join the core.
So the answer is an optimum of the whole, whatever the sampling did, and the value reported is that of the dual
function, max_w (c − Aᵀμ)ᵀw + μᵀ(limits), by one exact filling: a bound for any μ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csc_array, csr_array, diags_array, hstack, vstack

from direct_anneal.solver.feasible import Float, Polytope, Relaxed, Rows
from direct_anneal.solver.infeasibility import (
    InfeasibleBudgetError,
    InfeasibleError,
    check_amounts,
    least_relaxations,
)
from direct_anneal.solver.problem import SelectionProblem
from direct_anneal.solver.rounding import near

_CORE = 4096  # samples of one linear program: HiGHS takes tens of milliseconds for them
_STRATUM = 64  # of each named group at least so many are sampled
_SETTLED = 8  # of those that remain, the farthest 7/8 from the threshold are settled at a time
_WHOLE = 1024  # up to so many samples, what an infeasible problem needs is found for whole samples
_ABOVE = 1 + 1e-9  # ten times HiGHS's tolerance
_HIGHS: Any = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class _Optimum:
    weights: Float
    multipliers: Float
    price: float
    factor: float


class Coupled(Polytope):
    """Size, budgets of several bands, and quotas.

    Raises:
        InfeasibleBudgetError: the budgets are too small for everything else that is asked.
        InfeasibleError: that cannot be met even without budgets; names what to relax.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        super().__init__(problem)
        check_amounts(self)
        self.is_cheap = False
        self.least_cost = self._least_budgets(problem)

    def maximise(self, gain: Float, *, full: bool = True, after: Relaxed | None = None) -> Relaxed:  # noqa: ARG002
        """Solve the linear problem to HiGHS's tolerances, 1e-10 relative.

        Cost: linear programs of about 4,096 samples, one for each factor of 8 in N and one or two more, and as many
        passes over N (m + quotas) numbers.
        """
        found = self._optimum(_Program(self, gain, self.rows, full=full))
        assert found is not None, "that there are feasible weights was established when the polytope was built"
        reduced = self.reduced(gain, found.multipliers)
        filled = self.fill(reduced)
        if not full and self.size is not None:
            filled = np.where((reduced > 0) | self.forced_in, filled, 0.0)
        binding = found.multipliers != 0
        limits = np.where(found.multipliers > 0, self.rows.upper, self.rows.lower)
        value = float(filled @ reduced + found.multipliers[binding] @ limits[binding])
        distance = np.abs(reduced - found.price * self.weight)
        # Where filling up costs gain, whole samples must be wanted at that price, too.
        wanted = gain - min(found.price, 0.0) * self.weight
        return Relaxed(found.weights, value, found.multipliers, partial(near, self, wanted, found.weights, distance))

    def _optimum(self, program: _Program) -> _Optimum | None:
        """Find the optimal weights with their multipliers; None where there are no feasible ones."""
        core, settled = self._zoom(program)
        while True:
            found = program.solve(core, settled)
            guide = found or program.solve(core, settled, give=True)
            outside = np.setdiff1d(self.free, core, assume_unique=True)
            if guide is None:  # not even with limits that give way: too much was settled
                wrong = outside
            else:
                # Ten times HiGHS's tolerance.
                reduced = program.reduced(guide)[outside]
                wrong = outside[np.where(settled[outside] > 0.5, -reduced, reduced) > 1e-9 * program.largest(guide)]
            if not len(wrong):
                return found
            core = self.free[np.isin(self.free, np.concatenate([core, wrong]))]
            settled = np.where(np.isin(np.arange(len(settled)), core), 0.0, settled)

    def _zoom(self, program: _Program) -> tuple[NDArray[np.intp], Float]:
        """Return the core, in the order of ties, and everyone else's weight."""
        settled = self.forced_in.astype(np.float64)
        core = self.free
        while len(core) > _CORE:
            sample, stands_for = self._sample(core)
            found = program.solve(sample, settled, stands_for, give=True)
            if found is None:
                break
            reduced = program.reduced(found)[core]
            keep = max(_CORE, len(core) // _SETTLED)
            # Of equals the first stay, which are those that ties are to be decided for.
            kept = np.zeros(len(core), dtype=np.bool_)
            kept[np.argsort(np.abs(reduced), kind="stable")[:keep]] = True
            settled[core[~kept]] = reduced[~kept] > 0
            core = core[kept]
        return core, settled

    def _sample(self, core: NDArray[np.intp]) -> tuple[NDArray[np.intp], Float]:
        """Return some of the core, evenly in the order of ties within each combination of groups; for how many each
        stands.
        """
        strata = np.zeros(len(core), dtype=np.intp)
        for group in self.groupings:
            strata = strata * len(group.floors) + group.codes[core]
        _, strata, sizes = np.unique(strata, return_inverse=True, return_counts=True)
        wanted = np.minimum(sizes, np.maximum(_STRATUM, _CORE * sizes // len(core)))
        starts = np.cumsum(sizes) - sizes
        evenly = [
            start + (np.arange(count) * size) // count for start, size, count in zip(starts, sizes, wanted, strict=True)
        ]
        picked = np.sort(np.argsort(strata, kind="stable")[np.concatenate(evenly)])
        return core[picked], (sizes / wanted)[strata[picked]]

    def _least_budgets(self, problem: SelectionProblem) -> Any:
        """Return the least feasible budget; with bands, the budgets times the least feasible factor."""
        rows, whole = self.rows, len(self.by_tie) <= _WHOLE and self.size is None  # tokens are used up in fractions
        bounded = np.isfinite(self.budgets)
        by_band = len(bounded) > 1 and bool(bounded.any())
        if by_band:
            found = self._optimum(_Program(self, np.zeros(len(self.cost)), rows, full=True, least_factor=True))
        else:
            # The cheapest weights that keep the quotas. Costs may be equal, zero for instance: what decides among them
            # then is far below what matters.
            rest = slice(rows.num_budgets, None)
            lower, upper, names = rows.lower[rest], rows.upper[rest], rows.names[rest]
            others = Rows(csc_array(rows.matrix[rest]), lower, upper, names, 0, rows.num_linear)
            noise = np.empty(len(self.cost))
            noise[self.by_tie] = np.random.default_rng(0).random(len(noise)) * 1e-11
            cost = self.cost[:, 0]
            found = self._optimum(_Program(self, -cost - noise * (cost.mean() or 1.0), others, full=True))
        if found is None:
            raise InfeasibleError.of(least_relaxations(self, whole=whole))
        least = np.where(bounded, self.budgets, 0.0) * found.factor if by_band else found.weights @ self.cost  # (m,)
        if np.any(least > self.budgets * _ABOVE):
            relaxations = least_relaxations(self, whole=whole)
            if not all(relaxation.name.startswith("the budget") for relaxation in relaxations):
                raise InfeasibleError.of(relaxations)  # whole samples need more than the budgets
            if not by_band:
                least = np.array([relaxation.needed for relaxation in relaxations])
            if np.ndim(problem.budget) == 0:
                raise InfeasibleBudgetError(float(np.max(problem.budget)), float(least[0]))
            raise InfeasibleBudgetError(np.asarray(problem.budget, dtype=np.float64), least, relaxations)
        return float(least[0]) if np.ndim(problem.budget) == 0 else least


class _Program:
    """Linear programs over some of the samples for one gain, the others settled, by HiGHS.

    With `least_factor`, every budget is multiplied by one factor t, and −t is maximised instead of the gain.
    """

    def __init__(self, polytope: Polytope, gain: Float, rows: Rows, *, full: bool, least_factor: bool = False) -> None:
        self._polytope, self._gain, self._rows = polytope, gain, rows
        self._full = full or polytope.size is None
        self._least_factor = least_factor
        # In units of what one selected sample may have: entries about 1, whatever the units of cost.
        self._count = polytope.capacity / float(polytope.weight.mean())
        self._scale = np.where(rows.limits > 0, rows.limits / self._count, rows.means)
        self._unit = float(np.abs(gain).max()) or 1.0
        self._size_unit = float(polytope.weight.max())

    def reduced(self, found: _Optimum) -> Float:
        """Return c − Aᵀμ − ν s, shape (N,)."""
        priced: Float = self._rows.matrix.T @ found.multipliers + found.price * self._polytope.weight
        return self._gain - priced

    def largest(self, found: _Optimum) -> float:
        """Return the magnitude of the terms of the reduced gain; its rounding is relative to that."""
        return float(np.abs(self._gain).max() + np.abs(found.price) * self._size_unit)

    def solve(
        self, core: NDArray[np.intp], settled: Float, stands_for: Float | None = None, *, give: bool = False
    ) -> _Optimum | None:
        """Solve over the core, each of whose samples stands for one or so many.

        Args:
            give: let limits give way at a high price, so that multipliers tell what is in the way.

        Returns:
            None where there are no feasible weights.
        """
        rows, scale, count = self._rows, self._scale, len(core)
        upto = np.ones(count) if stands_for is None else stands_for
        base = rows.matrix @ settled
        upper, lower = rows.upper, rows.lower
        elastic = np.zeros(len(rows.names))
        price_of_giving = 0.0
        if self._least_factor:
            elastic[: rows.num_budgets] = rows.upper[: rows.num_budgets]
            upper = np.where(elastic > 0, 0.0, upper)
            price_of_giving = 1.0
        elif give:
            elastic, price_of_giving = scale * self._count, 100.0 * self._count
        matrix = csc_array(diags_array(1 / scale) @ rows.matrix[:, core])
        has_upper, has_lower = np.isfinite(upper), np.isfinite(lower)
        giving = csc_array(-(elastic / scale)[:, None])
        above = csr_array(hstack([matrix, giving]))[has_upper]
        below = csr_array(hstack([-matrix, giving]))[has_lower]
        sides, bounds = [above, below], [((upper - base) / scale)[has_upper], ((base - lower) / scale)[has_lower]]
        size = np.append(self._polytope.weight[core], 0.0)[None] / self._size_unit
        room = (self._polytope.capacity - float(self._polytope.weight @ settled)) / self._size_unit
        equal: dict[str, Any] = {"A_eq": size, "b_eq": [room]} if self._full else {}
        if not self._full:
            sides.append(csr_array(size))
            bounds.append(np.array([room]))
        program: dict[str, Any] = {
            "c": np.append(-self._gain[core] / self._unit, price_of_giving),
            "A_ub": vstack(sides, format="csc"),
            "b_ub": np.concatenate(bounds),
            "bounds": np.stack([np.zeros(count + 1), np.append(upto, np.inf if price_of_giving else 0.0)], axis=1),
        }
        result = linprog(**program, **equal, method="highs", options=_HIGHS)
        if result.status != 0 or result.x is None:
            return None
        weights = settled.copy()
        weights[core] = np.clip(result.x[:count], 0.0, upto)
        multipliers, duals = np.zeros(len(rows.names)), -result.ineqlin.marginals
        uppers, lowers = int(has_upper.sum()), int(has_lower.sum())
        multipliers[has_upper] += np.maximum(duals[:uppers], 0.0)
        multipliers[has_lower] -= np.maximum(duals[uppers : uppers + lowers], 0.0)
        price = -result.eqlin.marginals[0] if self._full else duals[-1]
        return _Optimum(
            weights,
            multipliers / scale * self._unit,
            float(price) / self._size_unit * self._unit,
            float(result.x[-1]),
        )
