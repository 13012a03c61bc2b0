"""The largest eigenvalue that damping goes by, against all eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from direct_anneal.config.objective import FilterCurvature
from direct_anneal.objectives.matching import MatchingConfig
from direct_anneal.objectives.sketched import Counted, largest_eigenvalue
from direct_anneal.solver import FeatureMatrix, matrix


@pytest.mark.parametrize("size", [1, 2, 64, 65, 200])
@pytest.mark.parametrize("rank", [0, 1, 300])
def test_is_that_of_all_eigenvalues(size: int, rank: int) -> None:
    rows = np.random.default_rng(size).normal(size=(rank, size)) / np.arange(1, size + 1)
    moment = rows.T @ rows
    expected = float(np.linalg.eigvalsh(moment)[-1])
    assert largest_eigenvalue(moment) == pytest.approx(expected, rel=1e-13, abs=1e-300)
    assert largest_eigenvalue(moment) == largest_eigenvalue(moment.copy())


def test_of_one_that_is_as_large_everywhere() -> None:
    assert largest_eigenvalue(np.eye(100) * 3.0) == pytest.approx(3.0, rel=1e-13)


@pytest.mark.parametrize("side", ["pool", "both"])
@pytest.mark.parametrize("zero", [False, True])
def test_the_root_of_few_long_rows_is_that_of_all_directions(
    side: FilterCurvature, zero: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_WIDE", 0)
    rng = np.random.default_rng(4)
    rows, validation = rng.normal(size=(9, 60)) * (not zero), rng.normal(size=(5, 60)) * (not zero)
    rows[4] = rows[1]
    counted = Counted(FeatureMatrix(rows), None, validation, np.zeros((9, 1)), np.zeros(1))
    objective = MatchingConfig(filter_curvature=side, damping=0.05)
    root = objective.damped_root(counted)
    assert root.shape == (60, 14)
    inverse = np.linalg.inv(objective.damped_curvature(counted))
    both = np.vstack([rows, validation])
    np.testing.assert_allclose((both @ root) @ (both @ root).T, both @ inverse @ both.T, rtol=1e-9, atol=1e-12)
