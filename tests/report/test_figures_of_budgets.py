"""The figure over budgets, where nothing that a budget allows is worth anything."""

from __future__ import annotations

import pytest

from direct_anneal.report import figures


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("objectives", [(-2.0, -1.0), (-2.0, 5.0), (0.0, 0.0)])
def test_objectives_below_zero_are_drawn_as_none(objectives: tuple[float, float]) -> None:
    points = [
        {"ratio": ratio, "objective": objective, "counts": {"code": 3, "web": 1}}
        for ratio, objective in zip((0.5, 1.0), objectives, strict=True)
    ]
    assert "<svg" in figures.budgets(points, 1.0, ["code"])
