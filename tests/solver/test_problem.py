"""Problems that SelectionProblem refuses, and the reasons it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from direct_anneal.solver import FeatureMatrix, InfeasibleBudgetError, SelectionProblem, solve

# Four samples of two features; each case below changes one thing.
SOUND: dict[str, Any] = {"features": np.ones((4, 2)), "stiff_cost": np.ones(4), "num_selected": 2, "budget": 4.0}
IN_TOKENS: dict[str, Any] = {"num_selected": None, "num_tokens": np.array([3, 5, 4, 3]), "token_budget": 7}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": np.inf},
        {"budget": 0.0, "stiff_cost": np.zeros(4)},
        {"num_selected": 1},
        {"num_selected": 4},
        {"features": FeatureMatrix(np.ones((4, 2)))},
        {"objective": "descent", "target": np.ones(2)},
        {"tie_order": np.array([3, 1, 2, 0])},
        IN_TOKENS,
        IN_TOKENS | {"token_budget": 3},
        IN_TOKENS | {"token_budget": 15},
    ],
)
def test_sound_problems_are_solved(changes: dict[str, Any]) -> None:
    assert len(solve(SelectionProblem(**SOUND | changes)).indices) >= 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stiff_cost": np.ones(3)}, r"stiff_cost has shape \(3,\), features 4 rows"),
        ({"stiff_cost": np.ones((4, 1))}, "stiff_cost has shape"),
        ({"stiff_cost": np.array([1.0, np.nan, 1.0, 1.0])}, "finite and ≥ 0"),
        ({"stiff_cost": np.array([1.0, np.inf, 1.0, 1.0])}, "finite and ≥ 0"),
        ({"stiff_cost": np.array([1.0, -1e-300, 1.0, 1.0])}, "finite and ≥ 0"),
        ({"budget": -1e-300}, "budget must be ≥ 0"),
        ({"budget": np.nan}, "budget must be ≥ 0"),
        ({"num_selected": None}, "exactly one of num_selected and token_budget"),
        ({"token_budget": 7, "num_tokens": np.ones(4, int)}, "exactly one of num_selected and token_budget"),
        ({"num_selected": 0}, r"num_selected must be in 1\.\.4"),
        ({"num_selected": 5}, r"num_selected must be in 1\.\.4"),
        (IN_TOKENS | {"num_tokens": None}, "needs num_tokens"),
        (IN_TOKENS | {"num_tokens": np.ones(3, int)}, "needs num_tokens"),
        (IN_TOKENS | {"num_tokens": np.array([3, 0, 4, 3])}, "needs num_tokens"),
        (IN_TOKENS | {"token_budget": 2}, "less than the shortest sample"),
        (IN_TOKENS | {"token_budget": 16}, "more than the samples have together"),
        ({"objective": "ascent"}, "'ascent'"),
        ({"objective": "descent"}, "descent and matching need a target"),
        ({"target": np.ones(2)}, "energy takes none"),
        ({"objective": "descent", "target": np.ones(3)}, r"target has shape \(3,\), features R=2"),
        ({"objective": "descent", "target": np.array([1.0, np.nan])}, "target must be finite"),
        ({"tie_order": np.arange(3)}, r"tie_order must be finite and of shape \(4,\)"),
    ],
)
def test_unsound_problems_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SelectionProblem(**SOUND | changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("objective", ["energy", "descent"])
def test_features_that_are_not_finite_are_refused(objective: str, bad: float) -> None:
    features = np.ones((4, 2), dtype=np.float16)
    features[2, 1] = bad
    target = np.ones(2) if objective == "descent" else None
    problem = SelectionProblem(**SOUND | {"features": features, "objective": objective, "target": target})
    with pytest.raises(ValueError, match="features must be finite"):
        solve(problem)


def test_infeasible_budget_says_what_would_do() -> None:
    problem = SelectionProblem(**SOUND | {"stiff_cost": np.array([1.0, 2.0, 4.0, 8.0]), "budget": 2.5})
    with pytest.raises(InfeasibleBudgetError, match=r"at least 3, .* but is 2\.5: raise it or select less") as caught:
        solve(problem)
    assert (caught.value.budget, caught.value.least_feasible) == (2.5, 3.0)
