"""Algorithm 2 of the paper to the letter (arXiv:2605.31175): linear problems in turn, then the K largest weights.

A reference for tests and comparisons: dense, with a general solver for linear programs, without what `select` does
beside it (certified bounds, exact budgets after rounding, floors, ties by id).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates

SHARE, BUDGET_RATIO, ROUNDS, RTOL = 0.945, 0.1, 50, 1e-6
CHOSEN_SHARE = 0.1  # K / N, of which the paper's weights are made; the highest are taken, as of any score


def published(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature for all)
    """Return the paper's weights w of the pool's documents, (N,); NaN without a gradient."""
    pool = candidates.pool_gradients.dense()  # (n, R)
    count = max(1, round(CHOSEN_SHARE * len(pool)))
    return candidates.spread(algorithm_2(pool, candidates.validation_gradients.dense(), count))


def algorithm_2(
    pool: NDArray[np.float64],
    validation: NDArray[np.float64],
    num_selected: int,
    budget_ratio: float = BUDGET_RATIO,
) -> NDArray[np.float64]:
    """Return weights of the published objective by successive convex approximation from uniform weights, (n,).

    maximise ‖Σ w_i F z_i‖² subject to 0 ≤ w ≤ 1, Σ w = K, Σ a_i w_i ≤ ratio · mean(a) · K

    Where no weights meet the budget, it is 1.1 times the least that some do (ours: the paper's is infeasible on all
    pools that we tried).

    Cost: a linear program of n variables in each round.
    """
    from scipy.optimize import linprog

    values, vectors = np.linalg.eigh(validation.T @ validation / len(validation))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    stiff = int(np.searchsorted(np.cumsum(values), SHARE * values.sum())) + 1
    along = pool @ vectors[:, :stiff]  # (n, s)
    cost = along**2 @ values[:stiff]
    flat = pool - along @ vectors[:, :stiff].T
    least = float(np.sort(cost)[:num_selected].sum())
    budget = budget_ratio * float(cost.mean()) * num_selected
    weights: NDArray[np.float64] = np.full(len(pool), num_selected / len(pool))
    value = -np.inf
    for _ in range(ROUNDS):
        moved = flat.T @ weights
        if float(moved @ moved) <= value * (1 + RTOL):
            break
        value = float(moved @ moved)
        found = linprog(
            -2 * flat @ moved,
            A_ub=cost[None],
            b_ub=[budget if budget >= least else 1.1 * least],
            A_eq=np.ones((1, len(pool))),
            b_eq=[num_selected],
            bounds=(0, 1),
            method="highs",
        )
        assert found.x is not None, found.message  # the budget is one that some weights meet
        weights = found.x
    return weights
