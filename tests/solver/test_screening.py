"""Candidates for swaps against gains of all samples, computed anew each time.

N samples, R sketch size, p a pull, σ a sign.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.solver import FeatureMatrix, SelectionProblem, matrix, screening
from direct_anneal.solver.lp import OneBudget
from direct_anneal.solver.screening import Lengths, Screen

Float = NDArray[np.float64]

N, R, COUNT = 300, 6, 5


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold half of so small a matrix, with each row read anew, a third of them in each part."""
    monkeypatch.setattr(screening, "_SHARE", 2)
    monkeypatch.setattr(matrix, "_KEPT", 0)
    monkeypatch.setattr(matrix, "_PART_BYTES", 8 * R * N // 3)


def naive(X: Float, polytope: OneBudget, sign: float, pull: Float, chosen: NDArray[np.bool_]) -> tuple[list[int], ...]:
    """The first and the last in the order of ties of those that gain most, in that order and against it."""
    length, slope = sign * np.sum(X * X, axis=1), 2.0 * X @ pull
    found = []
    for gain, side, order in ((length + slope, ~chosen, 1), (length - slope, chosen, -1)):
        positions = [i for i in polytope.free[::order].tolist() if side[i]]
        best = sorted(positions, key=lambda i: -round(float(gain[i]), 6))[:COUNT]  # sorted is stable; float32 rounds
        found.append([i for i in positions if i in best])
    return tuple(found)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("step", [0.0, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("mapped", [False, True])
def test_candidates_are_those_of_all_samples(sign: float, step: float, mapped: bool) -> None:
    rng = np.random.default_rng(7)
    z = rng.normal(size=(N, R)).astype(np.float16)
    z[N // 2 :: 3] = z[: len(z[N // 2 :: 3])]  # equals
    keywords = {"scale": rng.uniform(0.5, 2.0, N), "mapped": rng.normal(size=(R, R))} if mapped else {}
    if mapped:
        keywords["scale"][N // 2 :: 3] = keywords["scale"][: len(z[N // 2 :: 3])]
    X = z.astype(np.float64) * keywords.get("scale", np.ones(N))[:, None] @ keywords.get("mapped", np.eye(R))
    features = FeatureMatrix(z, **keywords)
    forced = {"forced_in": [3], "forced_out": [4, 7], "tie_order": rng.permutation(N)}
    polytope = OneBudget(SelectionProblem(features, np.zeros(N), num_selected=60, budget=np.inf, **forced))
    chosen = rng.permutation(N) < 60
    chosen[[3, 4, 7]] = True, False, False
    pull = 20.0 * rng.normal(size=R)
    screen = Screen(features, Lengths(features), polytope, sign, pull, 2.0 * features.dot(pull, rough=True))
    for _ in range(12):
        found = screen.best(pull, chosen, COUNT)
        assert found is not None
        ins, outs = found
        assert (ins.tolist(), outs.tolist()) == naive(X, polytope, sign, pull, chosen)
        chosen[ins[0]], chosen[outs[0]] = True, False
        pull = pull + step * rng.normal(size=R)


def test_a_pull_that_moves_little_takes_no_pass() -> None:
    rng = np.random.default_rng(8)
    features = FeatureMatrix(rng.normal(size=(N, R)))
    polytope = OneBudget(SelectionProblem(features, np.zeros(N), num_selected=60, budget=np.inf))
    pull, chosen = 50.0 * rng.normal(size=R), np.arange(N) < 60
    screen = Screen(features, Lengths(features), polytope, -1.0, pull, 2.0 * features.dot(pull))
    before = features.passes
    for _ in range(10):
        screen.best(pull, chosen, COUNT)
        pull = pull + 0.01 * rng.normal(size=R)
    assert features.passes == before
    for _ in range(3):
        pull = 50.0 * rng.normal(size=R)
        screen.best(pull, chosen, COUNT)
    assert features.passes > before


def test_a_side_without_samples_has_no_candidates() -> None:
    features = FeatureMatrix(np.eye(R))
    polytope = OneBudget(SelectionProblem(features, np.zeros(R), num_selected=R, budget=np.inf))
    screen = Screen(features, Lengths(features), polytope, 1.0, np.ones(R), np.full(R, 2.0))
    assert screen.best(np.ones(R), np.ones(R, dtype=bool), COUNT) is None


@pytest.mark.parametrize("size", [5, 80])
def test_bounds_of_lengths_hold(size: int) -> None:
    rng = np.random.default_rng(9)
    z, root = rng.normal(size=(50, size)).astype(np.float16), rng.normal(size=(size, size))
    features = FeatureMatrix(z, mapped=root, scale=-np.arange(50.0))
    lengths = np.linalg.norm(z.astype(np.float64) @ root, axis=1) * np.arange(50)
    assert np.all(features.longest() >= lengths)
    largest = np.linalg.norm(root, 2) * np.linalg.norm(z.astype(np.float64), axis=1) * np.arange(50)
    np.testing.assert_allclose(features.longest(), largest, rtol=0.04)
