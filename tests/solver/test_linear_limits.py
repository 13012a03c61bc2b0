"""Limits on sums of either sign: against brute force over every selection, and what is said where none is feasible.

N samples, K selected, R features, B tokens.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.solver import InfeasibleError, Linear, Quota, SelectionProblem, solve

Float = NDArray[np.float64]


def drawn(seed: int, count: int = 10, chosen: int = 4) -> SelectionProblem:
    """Two limits: one of both signs with a floor, one with a ceiling near its mean."""
    rng = np.random.default_rng(seed)
    gain, kept, lost = rng.normal(size=(3, count))
    return SelectionProblem(
        gain[:, None],
        rng.random(count),
        num_selected=chosen,
        budget=0.6 * chosen,
        objective="descent",
        target=np.ones(1),
        linear=(
            Linear(kept, floor=0.3 * chosen * float(kept.mean()), name="the retained"),
            Linear(lost, floor=-chosen, ceiling=chosen * float(lost.mean()), name="the lost"),
        ),
    )


def allowed(problem: SelectionProblem, chosen: NDArray[np.intp]) -> bool:
    sums = [(limit, math.fsum(limit.values[chosen])) for limit in problem.linear]
    within = all(limit.floor - 1e-12 <= total <= limit.ceiling + 1e-12 for limit, total in sums)
    return within and math.fsum(problem.stiff_cost[chosen]) <= problem.budget * (1 + 1e-12)


def every(problem: SelectionProblem) -> list[NDArray[np.intp]]:
    assert problem.num_selected is not None
    pairs = itertools.combinations(range(problem.features.shape[0]), problem.num_selected)
    return [np.array(one) for one in pairs if allowed(problem, np.array(one))]


@pytest.mark.parametrize("seed", range(25))
def test_the_best_there_is_or_refused(seed: int) -> None:
    problem = drawn(seed)
    feasible = every(problem)
    if not feasible:
        with pytest.raises(InfeasibleError):
            solve(problem)
        return
    best = max(float(problem.features[one, 0].sum()) for one in feasible)
    selection = solve(problem)
    assert allowed(problem, selection.indices)
    assert selection.objective == pytest.approx(best, abs=1e-9)
    assert selection.bound >= best - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_matching_keeps_them_and_its_bound_holds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(10, 3))
    problem = replace(drawn(seed), features=rows, objective="matching", target=rows[:3].sum(axis=0))
    feasible = every(problem)
    if not feasible:
        pytest.skip("no selection keeps these limits")
    assert problem.target is not None
    apart = float(problem.target @ problem.target)
    best = max(apart - float(np.square(rows[one].sum(axis=0) - problem.target).sum()) for one in feasible)
    selection = solve(problem)
    assert allowed(problem, selection.indices)
    assert selection.objective <= best + 1e-9 <= selection.bound + 2e-9


def test_beside_quotas_and_by_tokens() -> None:
    rng = np.random.default_rng(3)
    count = 300
    gain, kept = rng.normal(size=(2, count))
    tokens, domains = rng.integers(5, 60, size=count), np.array(["code", "web"])[rng.integers(2, size=count)]
    problem = SelectionProblem(
        gain[:, None],
        np.zeros(count),
        token_budget=1500,
        num_tokens=tokens,
        objective="descent",
        target=np.ones(1),
        quotas=Quota(domains, {"code": 500}, {}, "tokens", "domain"),
        linear=(Linear(kept, floor=12.0, name="the retained"),),
    )
    selection = solve(problem)
    assert math.fsum(kept[selection.indices]) >= 12.0
    assert tokens[selection.indices][domains[selection.indices] == "code"].sum() >= 500
    assert tokens[selection.indices].sum() <= 1500
    free = solve(replace(problem, linear=()))
    assert math.fsum(kept[free.indices]) < 12.0  # else this tests nothing
    assert selection.objective <= selection.bound


def test_a_limit_that_cannot_be_met_is_named_with_what_it_needs() -> None:
    kept = np.array([1.0, 0.5, -1.0, -2.0])
    problem = SelectionProblem(
        np.ones((4, 1)), np.zeros(4), num_selected=2, objective="descent", target=np.ones(1),
        linear=(Linear(kept, floor=2.0, name="the retained"),),
    )  # fmt: skip
    with pytest.raises(InfeasibleError, match=r"the floor of the retained must be at most 1\.5, but is 2"):
        solve(problem)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"values": np.zeros((2, 2))}, "must be finite and of shape"),
        ({"values": np.array([0.0, np.nan])}, "must be finite"),
        ({"values": np.zeros(2), "floor": np.nan}, "must be numbers"),
    ],
)
def test_unsound_limits_are_refused(keywords: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Linear(**keywords)  # type: ignore[arg-type]


def test_one_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="features 4 rows"):
        SelectionProblem(np.ones((4, 1)), np.zeros(4), num_selected=2, linear=(Linear(np.zeros(3)),))
