"""The table against scipy's own test, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from direct_anneal.compare import Row, table
from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.fronts import dominated_area, fronts
from direct_anneal.compare.tables import markdown, pareto_front, plot_pareto
from direct_anneal.compare.verdicts import Verdict, recommendation, verdicts


def line(arm: str, seed: int, target: float, macro: float = 2.0, fraction: float = 0.2, **more: Any) -> dict[str, Any]:
    given = {"scenario": "mixed", "model": "1m", "arm": arm, "seed": seed, "fraction": fraction}
    scores = {"target_bpb": target, "others_bpb": macro, "macro_bpb": macro}
    return {**given, **scores, "training_seconds": 3.0, **more}


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


def test_others_leave_out_the_target_and_what_is_set_aside() -> None:
    domains = {"a": 1.0, "b": 2.0, "c": 4.0, "a (whole)": 9.0}
    old = {**line("random", 0, 1.0, others_bpb=None, domain_bpb=domains, aside=["a (whole)"]), "target": ["a"]}
    (row,) = table([old], "random")
    assert row.others == 3.0
    (row,) = table([{**old, "others_bpb": 2.5}], "random")
    assert row.others == 2.5


def test_replay_shares_are_apart_and_old_lines_have_none() -> None:
    lines = [
        line("random", 0, 2.0),
        line("direct", 0, 1.9),
        line("random", 0, 1.8, replay=0.5),
        line("direct", 0, 1.5, replay=0.5),
    ]
    found = {(row.replay, row.arm): row.target_difference for row in table(lines, "random")}
    assert {place: difference.mean for place, difference in found.items() if difference} == {
        (0.0, "direct"): pytest.approx(-0.1),
        (0.5, "direct"): pytest.approx(-0.3),
    }


class TestFronts:
    def test_the_area_is_what_points_of_a_grid_say(self) -> None:
        random = np.random.default_rng(3)
        points = [(float(x), float(y)) for x, y in random.uniform(0, 1, (5, 2))]
        steps = (np.arange(400) + 0.5) / 400
        dominated = np.zeros((400, 400), dtype=bool)
        for x, y in points:
            dominated |= (steps[:, None] > x) & (steps[None, :] > y)
        # Each of the five corners is wrong by at most the cells that its two edges cut.
        assert dominated_area(points, (1.0, 1.0)) == pytest.approx(dominated.mean(), abs=5 * 2 / 400)
        assert dominated_area([(2.0, 0.0), (0.0, 2.0)], (1.0, 1.0)) == 0

    def test_areas_are_compared_seed_by_seed(self) -> None:
        lines = []
        for seed, lift in enumerate((0.0, 0.1, 0.05)):
            for replay in (0.0, 0.5):
                lines.append(line("random", seed, 2.0 + lift, others_bpb=2.0 + replay, replay=replay))
                lines.append(line("direct", seed, 1.5 + lift - 0.1 * seed, others_bpb=1.8 + replay, replay=replay))
        lines.append(line("direct", 7, 1.0, others_bpb=1.0))  # a seed without all replay shares counts nowhere
        found = {front.arm: front for front in fronts(lines, "random")}
        worst = (2.5, 2.1)
        areas = {
            arm: [
                dominated_area([(start + r, first + lift - slope * seed) for r in (0.0, 0.5)], worst)
                for seed, lift in enumerate((0.0, 0.1, 0.05))
            ]
            for arm, start, first, slope in (("random", 2.0, 2.0, 0.0), ("direct", 1.8, 1.5, 0.1))
        }
        assert found["direct"].area == pytest.approx(np.mean(areas["direct"]))
        difference = found["direct"].difference
        assert difference is not None
        assert difference.p_value == pytest.approx(ttest_rel(areas["direct"], areas["random"]).pvalue)
        assert found["random"].difference is None


class TestVerdicts:
    @staticmethod
    def judged(target: list[float], others: list[float], guard: float = 0.02) -> Verdict:
        lines = []
        for seed, (of_target, of_others) in enumerate(zip(target, others, strict=True)):
            lines.append(line("random", seed, 2.0, others_bpb=2.0))
            lines.append(line("direct", seed, 2.0 + of_target, others_bpb=2.0 + of_others))
        (verdict,) = verdicts(lines, ["random"], guard)
        return verdict

    def test_ahead_within_the_guard_is_adopted(self) -> None:
        verdict = self.judged([-0.05, -0.06, -0.055], [0.001, 0.002, 0.0])
        assert verdict.decision == "adopt"
        assert "adopt direct" in recommendation([verdict])[0]

    def test_behind_or_beyond_the_guard_is_rejected(self) -> None:
        assert self.judged([0.05, 0.06, 0.055], [0.0, 0.001, 0.0]).decision == "reject"
        verdict = self.judged([-0.05, -0.06, -0.055], [0.05, 0.06, 0.055])
        assert verdict.decision == "reject"
        assert "adopt nothing" in recommendation([verdict])[0]
        assert self.judged([-0.05, -0.06, -0.055], [0.05, 0.06, 0.055], guard=0.1).decision == "adopt"

    def test_the_seeds_that_would_decide_are_the_fewest(self) -> None:
        target = [-0.03, 0.01, -0.02]
        verdict = self.judged(target, [0.0, 0.0001, 0.0])
        assert verdict.decision == "inconclusive"
        assert verdict.seeds is not None
        mean, deviation = float(np.mean(target)), float(np.std(target, ddof=1))
        half = {n: t.ppf(0.975, n - 1) * deviation / n**0.5 for n in (verdict.seeds - 1, verdict.seeds)}
        assert half[verdict.seeds] < abs(mean) <= half[verdict.seeds - 1]

    def test_one_seed_decides_nothing(self) -> None:
        verdict = self.judged([-0.5], [0.0])
        assert (verdict.decision, verdict.seeds) == ("inconclusive", None)
        assert verdict.sentence.endswith("one seed says nothing of the spread: run at least 2")
        assert recommendation([verdict])[0].endswith("One seed says nothing of the spread: run at least 2")

    def test_the_replay_share_that_can_be_adopted_is_recommended(self) -> None:
        lines = []
        for seed in range(3):
            for replay, of_target, of_others in ((0.0, -0.1, 0.08), (0.5, -0.06, 0.01)):
                lines.append(line("random", seed, 2.0, others_bpb=2.0, replay=replay))
                noise = 0.001 * seed
                lines.append(
                    line("direct", seed, 2.0 + of_target + noise, others_bpb=2.0 + of_others + noise, replay=replay)
                )
        (verdict,) = verdicts(lines, ["random"])
        assert (verdict.decision, verdict.replay) == ("adopt", 0.5)

    def test_of_undecided_replay_shares_one_within_the_guard_is_shown_with_its_seeds(self) -> None:
        lines = []
        for seed, noise in enumerate((-0.02, 0.0, 0.02)):
            for replay, of_target, of_others in ((0.0, -0.023, 0.0216), (0.5, -0.016, -0.03)):
                lines.append(line("random", seed, 2.0, others_bpb=2.0, replay=replay))
                scores = 2.0 + of_target + noise, 2.0 + of_others + noise
                lines.append(line("direct", seed, scores[0], others_bpb=scores[1], replay=replay))
        (verdict,) = verdicts(lines, ["random"])
        assert (verdict.decision, verdict.replay) == ("inconclusive", 0.5)
        assert verdict.seeds is not None
        assert f"About {verdict.seeds} seeds would decide on direct" in recommendation([verdict])[0]


@pytest.fixture
def rows() -> list[Row]:
    lines = [line(BEFORE, 0, 2.4, 2.5, fraction=0.0)]
    for seed in range(3):
        lines += [line("random", seed, 2.0 + 0.01 * seed), line("direct", seed, 1.9 + 0.012 * seed, 2.1)]
    return table(lines, "random")


def test_the_table_for_people(rows: list[Row]) -> None:
    text = markdown(rows, "random")
    assert "## mixed, 1m, 0.2 of the pool's tokens" in text
    assert "before annealing 2.4000, others 2.5000" in text
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
