"""Selection from arrays as an estimator: the same problem as by its parts, and scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from direct_anneal import DirectSelector, InputError, SelectionProblem, Spectrum, solve
from direct_anneal.solver import Quota

N, M, R, K = 60, 24, 10, 12
RNG = np.random.default_rng(3)
POOL, VALIDATION = RNG.normal(size=(N, R)), RNG.normal(size=(M, R)) * np.geomspace(3, 0.1, R)


def test_it_solves_the_papers_problem() -> None:
    spectrum = Spectrum.from_sketches(VALIDATION)
    cost = spectrum.stiff_cost(POOL)
    by_hand = solve(SelectionProblem(spectrum.flat(POOL), cost, num_selected=K, budget=0.8 * cost.mean() * K))
    selector = DirectSelector(num_selected=K, objective="energy", budget_ratio=0.8).fit(VALIDATION)
    found = selector.select(POOL)
    assert sorted(found.indices) == sorted(by_hand.indices)
    # Rows go through float32 units: 1e-7 each, squared and summed over K of them.
    assert found.objective == pytest.approx(by_hand.objective, rel=1e-5)
    assert selector.spectrum_.num_stiff == spectrum.num_stiff


def test_descent_goes_downhill_and_constraints_hold() -> None:
    groups = np.array(["a", "b"] * (N // 2))
    selector = DirectSelector(fraction=0.2, objective="descent", budget_ratio=5.0).fit(VALIDATION)
    found = selector.select(POOL, quotas=Quota(groups, floors={"a": 9}), forced_out=[0, 2, 4])
    assert len(found.indices) == K
    assert np.sum(groups[found.indices] == "a") >= 9
    assert not {0, 2, 4} & set(found.indices.tolist())
    assert found.objective > 0


def test_it_is_an_estimator() -> None:
    sklearn = pytest.importorskip("sklearn.base")
    selector = DirectSelector(num_selected=K, objective="energy")
    twin = sklearn.clone(selector.fit(VALIDATION))
    assert twin is not selector
    assert twin.get_params() == selector.get_params()
    assert not hasattr(twin, "spectrum_")
    assert selector.set_params(num_selected=5) is selector
    assert len(selector.select(POOL).indices) == 5
    assert selector.n_features_in_ == R
    assert repr(selector) == "DirectSelector(num_selected=5, objective='energy')"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "given once, by num_selected or fraction"),
        ({"num_selected": 3, "fraction": 0.5}, "given once"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\]"),
        ({"num_selected": N + 1}, r"num_selected must be in 1\.\.60"),
        ({"num_selected": 3, "budget_ratio": -1.0}, "^budget_ratio must be a number above 0"),
        ({"num_selected": 3, "objective": "ascent"}, "^objective must be matching, descent, energy, path or blend"),
        ({"num_selected": 3, "bands": 99}, "^bands must leave a stiff direction"),
        ({"num_selected": 3, "budget_ratio": 1e-6}, "budget_ratio must allow the size asked for"),
    ],
)
def test_what_cannot_be_is_a_line(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        DirectSelector(**parameters).fit(VALIDATION).select(POOL)
    assert "\n" not in str(refusal.value)


def test_complex_features_are_refused() -> None:
    with pytest.raises(InputError, match="features must be real numbers, got complex128"):
        DirectSelector(num_selected=3).fit(VALIDATION * 1j)
    fitted = DirectSelector(num_selected=3).fit(VALIDATION)
    for pool in (POOL * 1j, torch.from_numpy(POOL * 1j), torch.from_numpy(POOL).to(torch.complex64)):
        with pytest.raises(InputError, match="features must be real numbers, got complex"):
            fitted.select(pool)


def test_out_of_order_or_shape() -> None:
    with pytest.raises(InputError, match="call fit"):
        DirectSelector(num_selected=3).select(POOL)
    fitted = DirectSelector(num_selected=3).fit(VALIDATION)
    with pytest.raises(ValueError, match=r"shape \(N, 10\)"):
        fitted.select(POOL[:, :4])
    with pytest.raises(ValueError, match="finite"):
        fitted.select(np.where(np.arange(N)[:, None] == 3, np.nan, POOL))
    with pytest.raises(ValueError, match="'size' is no parameter"):
        fitted.set_params(size=3)
