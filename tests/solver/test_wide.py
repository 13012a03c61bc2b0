"""Rows that are longer than they are many: solved in a basis of theirs, against the same without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from direct_anneal.solver import FeatureMatrix, Objective, SelectionProblem, matrix, solve

N, R = 16, 40


@pytest.mark.parametrize("objective", ["energy", "descent", "matching"])
@pytest.mark.parametrize("way", ["plain", "mapped", "mapped to few", "removed"])
def test_a_basis_of_the_rows_changes_rounding_alone(
    objective: Objective, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_WIDE", 0)
    rng = np.random.default_rng(3)
    rows, scale = rng.normal(size=(N, R)).astype(np.float16), rng.uniform(0.5, 1.5, N)
    rows[9], scale[9] = rows[2], scale[2]
    keywords: dict[str, dict[str, Any]] = {
        "plain": {},
        "mapped": {"mapped": rng.normal(size=(R, R - 3))},
        "mapped to few": {"mapped": rng.normal(size=(R, N - 3))},  # fewer than rows: those before W are the wide ones
        "removed": {"removed": np.linalg.qr(rng.normal(size=(R, 2)))[0]},
    }
    size = {"mapped": R - 3, "mapped to few": N - 3}.get(way, R)
    target: dict[str, Any] = {} if objective == "energy" else {"target": 3.0 * rng.normal(size=size)}
    if objective == "matching":
        target["start"] = rng.normal(size=size)
    found = []
    for wide in (True, False):
        features = FeatureMatrix(rows, scale=scale, **keywords[way])
        assert features.is_wide
        if not wide:
            monkeypatch.setattr(FeatureMatrix, "is_wide", False)
        cost = np.linspace(1.0, 2.0, N)
        found.append(solve(SelectionProblem(features, cost, 6, budget=8.0, objective=objective, **target)))
    one, other = found
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-9, atol=1e-12)
    assert one.objective == pytest.approx(other.objective, rel=1e-9)
    assert one.bound == pytest.approx(other.bound, rel=1e-9)
    assert one.scores[2] == one.scores[9]
