"""The table against scipy's own test, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from direct_anneal.compare import Row, table
from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.tables import markdown, pareto_front, plot_pareto


def line(arm: str, seed: int, target: float, macro: float = 2.0, fraction: float = 0.2, **more: Any) -> dict[str, Any]:
    given = {"scenario": "mixed", "model": "1m", "arm": arm, "seed": seed, "fraction": fraction}
    return {**given, "target_bpb": target, "macro_bpb": macro, "training_seconds": 3.0, **more}


def rows_of(arms: dict[str, list[float]]) -> dict[str, Row]:
    lines = [line(arm, seed, value) for arm, values in arms.items() for seed, value in enumerate(values)]
    return {row.arm: row for row in table(lines, "random")}


def test_differences_are_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    one, two = random.normal(2, 0.1, 5), random.normal(1.9, 0.1, 5)
    difference = rows_of({"random": one.tolist(), "direct": two.tolist()})["direct"].target_difference
    assert difference is not None
    expected = ttest_rel(two, one)
    interval = expected.confidence_interval(0.95)
    assert difference.mean == pytest.approx((two - one).mean())
    assert difference.p_value == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_only_seeds_of_both_are_compared() -> None:
    lines = [line("random", seed, 2.0 + seed) for seed in (0, 1, 2)]
    lines += [line("direct", seed, 1.5 + seed + 0.1 * seed) for seed in (1, 2, 7)]
    row = next(row for row in table(lines, "random") if row.arm == "direct")
    assert row.num_seeds == 3
    assert row.target_difference is not None
    assert row.target_difference.num_seeds == 2
    assert row.target_difference.mean == pytest.approx((-0.4 - 0.3) / 2)


def test_one_seed_has_no_interval_and_none_no_difference() -> None:
    difference = rows_of({"random": [2.0], "direct": [1.9]})["direct"].target_difference
    assert difference is not None
    assert (difference.low, difference.p_value) == (None, None)
    lines = [line("random", 0, 2.0), line("direct", 1, 1.9)]
    assert all(row.target_difference is None for row in table(lines, "random"))


def test_the_same_arm_twice_differs_by_nothing() -> None:
    difference = rows_of({"random": [2.0, 2.1], "copy": [2.0, 2.1]})["copy"].target_difference
    assert difference is not None
    assert (difference.mean, difference.p_value) == (0.0, 1.0)


def test_arms_are_sorted_by_the_target_within_their_group() -> None:
    lines = [line("random", 0, 2.0), line("a", 0, 2.5), line("b", 0, 1.5), line("b", 0, 3.0, fraction=0.1)]
    assert [(row.fraction, row.arm) for row in table(lines, "random")] == [
        (0.2, "b"),
        (0.2, "random"),
        (0.2, "a"),
        (0.1, "b"),
    ]


def test_the_front_is_what_nothing_dominates() -> None:
    points = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.4, 0.4), (0.0, 1.0), (0.0, 0.9)]
    assert pareto_front(points) == [True, True, True, False, True, False]
    random = np.random.default_rng(1).normal(size=(40, 2))
    expected = [not any(np.all(other >= own) and np.any(other > own) for other in random) for own in random]
    assert pareto_front([(float(x), float(y)) for x, y in random]) == expected


@pytest.fixture
def rows() -> list[Row]:
    lines = [line(BEFORE, 0, 2.4, 2.5, fraction=0.0)]
    for seed in range(3):
        lines += [line("random", seed, 2.0 + 0.01 * seed), line("direct", seed, 1.9 + 0.012 * seed, 2.1)]
    return table(lines, "random")


def test_the_table_for_people(rows: list[Row]) -> None:
    text = markdown(rows, "random")
    assert "## mixed, 1m, 0.2 of the pool's tokens" in text
    assert "before annealing 2.4000, all domains 2.5000" in text
    cells = [cell.strip() for cell in next(row for row in text.splitlines() if row.startswith("| direct")).split("|")]
    assert cells[1:4] == ["direct", "3", "1.9120"]
    assert cells[4].startswith("-0.0980 [")
    assert math.isclose(float(cells[5]), ttest_rel([1.9, 1.912, 1.924], [2.0, 2.01, 2.02]).pvalue, abs_tol=1e-4)


@pytest.mark.parametrize("name", ["pareto.svg", "pareto.png"])
def test_the_plot_names_every_arm(rows: list[Row], tmp_path: Any, name: str) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_pareto(rows, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    if name.endswith("svg"):
        assert b">direct<" in content
        assert b">random<" in content
