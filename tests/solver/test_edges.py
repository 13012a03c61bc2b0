"""Pools at the edge of sense, each under one budget and under everything at once: bands, a floor and a ceiling, forced.

N samples, K selected, R sketch size.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.curvature import Spectrum
from direct_anneal.solver import InfeasibleError, Quota, Selection, SelectionProblem, solve

Float = NDArray[np.float64]
Objective = Literal["energy", "descent"]

N, R = 12, 5
DOMAINS = np.array(["code", "math", "web"])[np.arange(N) % 3]

each_objective = pytest.mark.parametrize("objective", ["energy", "descent"])
each_kind = pytest.mark.parametrize("coupled", [False, True])


def selected(features: Float, cost: Float, count: int, budget: float, objective: Objective, coupled: bool) -> Selection:
    """Solve; everything at once asks for a math document at least, two web ones at most, and keeps sample 3 out."""
    arguments: dict[str, Any] = {"stiff_cost": cost, "budget": budget}
    if coupled:
        arguments = {"stiff_cost": np.stack([cost, cost[::-1]], axis=1), "budget": np.array([budget, 2 * budget])}
        arguments["quotas"] = Quota(DOMAINS, {"math": min(1, count - 1)}, {"web": max(2, count - 8)}, kind="domain")
        arguments["forced_out"] = [3] if count < N else None
    if objective == "descent":
        arguments |= {"objective": "descent", "target": np.ones(features.shape[1])}
    selection = solve(SelectionProblem(features, num_selected=count, **arguments))
    assert len(selection.indices) == count
    assert np.all(np.asarray(selection.budget_used) <= np.asarray(selection.budget) * (1 + 1e-12))
    if coupled:
        counts = {domain: int(np.sum(DOMAINS[selection.indices] == domain)) for domain in ("math", "web")}
        assert counts["math"] >= min(1, count - 1)
        assert counts["web"] <= max(2, count - 8)
        assert count == N or 3 not in selection.indices
    return selection


@each_kind
@each_objective
def test_gradients_of_zero(objective: Objective, coupled: bool) -> None:
    selection = selected(np.zeros((N, R)), np.ones(N), 4, 4.0, objective, coupled)
    assert (selection.objective, selection.bound, selection.status) == (0.0, 0.0, "optimal")


@each_kind
@each_objective
def test_identical_samples(objective: Objective, coupled: bool) -> None:
    selection = selected(np.ones((N, R)), np.full(N, 0.1), 4, 0.1 * 4, objective, coupled)
    assert selection.objective == pytest.approx(80.0 if objective == "energy" else 20.0, rel=1e-12)
    assert selection.status == "optimal"


@each_kind
@each_objective
@pytest.mark.parametrize("num_stiff", [0, 1])
def test_one_stiff_direction_or_none(objective: Objective, coupled: bool, num_stiff: int) -> None:
    """With none, every cost is zero, and so may the budget be."""
    features = np.random.default_rng(0).normal(size=(N, R))
    cost = np.square(features[:, :num_stiff]).sum(axis=1)
    budget = 0.0 if num_stiff == 0 else float(np.sort(cost)[:8].sum())
    selection = selected(features, cost, 4, budget, objective, coupled)
    assert selection.objective <= selection.bound


@each_kind
@each_objective
def test_a_spectrum_of_less_than_full_rank(objective: Objective, coupled: bool) -> None:
    """Two validation samples in five dimensions, and a pool in the plane of three."""
    rng = np.random.default_rng(1)
    spectrum = Spectrum.from_sketches(rng.normal(size=(2, R)), energy=0.6)
    assert len(spectrum.eigenvalues) == 2
    z = rng.normal(size=(N, 3)) @ rng.normal(size=(3, R))
    cost = spectrum.stiff_cost(z)
    selection = selected(spectrum.flat(z), cost, 4, float(np.sort(cost)[:8].sum()), objective, coupled)
    assert 0 < selection.objective <= selection.bound


@each_kind
@each_objective
@pytest.mark.parametrize("count", [1, N])
def test_one_sample_and_all(objective: Objective, coupled: bool, count: int) -> None:
    rng = np.random.default_rng(2)
    features, cost = rng.normal(size=(N, R)), rng.random(N)
    selection = selected(features, cost, count, float(np.sum(cost)), objective, coupled)
    allowed = [i for i in range(N) if not coupled or i != 3]
    values = np.square(features).sum(axis=1) if objective == "energy" else features.sum(axis=1)
    if count == 1:
        assert selection.objective == pytest.approx(values[allowed].max(), rel=1e-12)
    else:
        assert sorted(selection.indices) == list(range(N))


@each_kind
@each_objective
def test_features_that_are_no_numbers(objective: Objective, coupled: bool) -> None:
    features = np.ones((N, R))
    features[7, 2] = np.nan
    with pytest.raises(ValueError, match="features must be finite"):
        selected(features, np.ones(N), 4, 4.0, objective, coupled)


@each_objective
def test_a_domain_smaller_than_its_floor(objective: Objective) -> None:
    problem = SelectionProblem(
        np.ones((N, R)),
        np.ones(N),
        num_selected=8,
        objective=objective,
        target=np.ones(R) if objective == "descent" else None,
        quotas=Quota(DOMAINS, {"math": 5}, kind="domain"),
    )
    with pytest.raises(InfeasibleError, match="the floor of domain math asks for 5 samples, but the pool has 4: lower"):
        solve(problem)


@each_objective
def test_all_that_is_selected_is_forced(objective: Objective) -> None:
    features = np.random.default_rng(3).normal(size=(N, R))
    problem = SelectionProblem(
        features,
        np.ones(N),
        num_selected=3,
        budget=3.0,
        objective=objective,
        target=np.ones(R) if objective == "descent" else None,
        quotas=Quota(DOMAINS, ceilings={"web": 3}),
        forced_in=[1, 4, 9],
    )
    assert sorted(solve(problem).indices) == [1, 4, 9]
