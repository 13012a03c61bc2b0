"""Tests of the bound on a map's norm."""

from __future__ import annotations

import numpy as np
import pytest

from direct_anneal.solver.row_map import RowMap


@pytest.mark.parametrize("shape", [(9, 5), (200, 90), (90, 200)])
@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0, 3.0])
def test_the_norm_is_a_bound_from_above_and_close(shape: tuple[int, int], decay: float) -> None:
    rng = np.random.default_rng(1)
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    spectrum = (1.0 + np.arange(min(shape))) ** -decay
    exact = np.linalg.norm(left * spectrum @ right, 2)
    assert exact <= RowMap(None, left * spectrum @ right).norm <= 1.05 * exact


def test_removing_directions_makes_nothing_longer() -> None:
    assert RowMap(None, None).norm == RowMap(np.eye(4)[:, :2], None).norm == 1.0
    assert RowMap(None, np.zeros((100, 100))).norm == 0.0
