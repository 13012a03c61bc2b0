"""Solve a selection problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.solver.energy import maximise_energy
from direct_anneal.solver.feasible import Float, Polytope
from direct_anneal.solver.lp import OneBudget
from direct_anneal.solver.lp_coupled import Coupled
from direct_anneal.solver.matching import match
from direct_anneal.solver.matrix import FeatureMatrix
from direct_anneal.solver.problem import SelectionProblem
from direct_anneal.solver.rounding import best
from direct_anneal.solver.solution import Selection


def solve(problem: SelectionProblem) -> Selection:
    """Choose the samples.

    `energy` is solved from several starts and improved by swaps (a local optimum, with an upper bound beside it);
    `descent` by one exact linear problem, rounded; `matching` by a sequence of them that ends at a small gap, rounded
    and improved by swaps. Size and budget are checked on the integer answer.

    Raises:
        InfeasibleBudgetError: no selection of this size stays within the budget; names the least that would.
        ValueError: features are not finite.

    Cost: `descent` one pass over the features, `energy` and `matching` some sixty or more; O(N) memory beside one block
    of features.

    >>> X = np.array([[2.0, 0.0], [1.0, 0.1], [-2.0, 0.0], [0.0, 0.5]])
    >>> solve(SelectionProblem(X, np.array([3.0, 1.0, 1.0, 1.0]), num_selected=2, budget=4.0)).indices
    array([0, 1])
    """
    features = problem.features if isinstance(problem.features, FeatureMatrix) else FeatureMatrix(problem.features)
    polytope, passes = polytope_of(problem), features.passes
    target = None if problem.target is None else np.asarray(problem.target, dtype=np.float64)
    apart = 0.0
    if target is not None:
        apart = float(np.square(target if problem.start is None else target - problem.start).sum())
    stats: dict[str, Any] = {"least_feasible": polytope.least_cost}
    if not np.all(np.isfinite(features.longest())):
        raise ValueError("features must be finite: leave out samples whose gradient is not")

    if features.is_wide:
        features, target = _narrowed(features, target)
        passes = features.passes - 1

    if problem.objective == "descent":
        assert target is not None
        gain = features.dot(target)
        relaxed = polytope.maximise(gain)
        loose = relaxed if polytope.size is None else polytope.maximise(gain, full=False)
        chosen, bound, proven = best(polytope, gain, loose, relaxed.chosen)
        weights = relaxed.weights
        objective = float(gain[chosen].sum())
        direction = target
        exact = "rounded"
        stats["multipliers"] = dict(zip(polytope.rows.names, relaxed.multipliers.tolist(), strict=True))
        stats["relaxed_bound"] = loose.value
        stats["proven"] = proven
    elif problem.objective == "matching":
        assert target is not None
        matched = match(features, target, polytope, apart)
        chosen, weights, bound = matched.chosen, matched.weights, matched.bound
        direction = target - features.weighted_sum(chosen.astype(np.float64))
        objective = float(apart - direction @ direction)
        exact = "rounded"
        stats |= {"relaxed": matched.relaxed, "steps": matched.steps, "swaps": matched.swaps}
    else:
        chosen, weights, bound, ascents = maximise_energy(features, polytope)
        direction = features.weighted_sum(chosen.astype(np.float64))
        objective = float(direction @ direction)
        exact = "stationary"
        stats["starts"] = [vars(ascent) for ascent in ascents]
    assert polytope.feasible(chosen), "a selection that breaks its size or its budget must never leave this function"

    stats["passes"] = features.passes - passes
    used = [math.fsum(cost) for cost in polytope.cost[chosen].T]
    length = float(np.linalg.norm(direction))
    scores = features.dot(direction / length) if length > 0 else np.zeros(features.shape[0])
    return Selection(
        indices=_strongest_first(chosen, scores, problem),
        weights=weights,
        scores=scores,
        objective=objective,
        bound=max(bound, objective),  # equal up to rounding where the bound is met
        budget=problem.budget,
        budget_used=used[0] if np.ndim(problem.budget) == 0 else np.array(used),
        status="optimal" if objective >= bound - 1e-9 * abs(bound) else exact,
        stats=stats,
    )


def _narrowed(features: FeatureMatrix, target: Float | None) -> tuple[FeatureMatrix, Float | None]:
    """Return coordinates of rows and target that keep all products among them, with one that is the target's alone."""
    found, basis = features.coordinates()
    rows = FeatureMatrix(np.hstack([found, np.zeros((len(found), 1))]))
    if target is None:
        return rows, None
    along = basis.T @ target
    return rows, np.append(along, np.linalg.norm(target - basis @ along))


def polytope_of(problem: SelectionProblem) -> Polytope:
    """Return the feasible set of a problem, with the way to maximise over it that is exact and fastest."""
    one = np.ndim(problem.budget) == 0 and not problem.all_quotas and not problem.linear
    return OneBudget(problem) if one else Coupled(problem)


def _strongest_first(
    chosen: NDArray[np.bool_], scores: NDArray[np.float64], problem: SelectionProblem
) -> NDArray[np.intp]:
    indices = np.flatnonzero(chosen)
    ties = indices if problem.tie_order is None else np.asarray(problem.tie_order)[indices]
    return indices[np.lexsort((ties, -(scores / problem.sizes)[indices]))]
