"""The largest eigenvalue that damping goes by, against all eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from direct_anneal.objectives.sketched import largest_eigenvalue


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
