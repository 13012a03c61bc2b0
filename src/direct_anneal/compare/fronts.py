"""Fronts: what an arm reaches on the target for what it costs elsewhere, over its replay shares.

One replay share is one point (others, target), in bits per byte, lower is better in both. An arm's front is compared
as a whole, by the area that it dominates: of all points between it and a worst point, those that some run of the arm
is better than in both. It is taken seed by seed, so that its differences are paired as all others are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.statistics import Difference, Line, by_arm, paired

Point = tuple[float, float]


@dataclass(frozen=True)
class Front:
    """One arm's front in one scenario at one fraction.

    Attributes:
        points: (replay, others, target) by replay share, means over seeds.
        area: dominated area, mean over seeds; (bits a byte)².
        difference: of the area to the reference's; above 0 the arm is better. None for the reference.
    """

    scenario: str
    model: str
    fraction: float
    arm: str
    points: tuple[tuple[float, float, float], ...]
    area: float
    difference: Difference | None


def fronts(lines: Sequence[Line], reference: str) -> list[Front]:
    """Return fronts of all arms with at least two replay shares, the largest area first within scenario and fraction.

    The worst point is that of all arms' runs together, so that areas can be compared within a scenario and fraction
    alone. Only seeds with all of an arm's replay shares count.
    """
    runs: dict[tuple[str, str, float], dict[str, dict[float, dict[int, Line]]]] = defaultdict(lambda: defaultdict(dict))
    for (scenario, model, fraction, replay), arms in by_arm(lines).items():
        for arm, seeds in arms.items():
            if arm != BEFORE:
                runs[scenario, model, fraction][arm][replay] = seeds
    found = []
    for (scenario, model, fraction), by_replay in runs.items():
        worst = _worst([line for shares in by_replay.values() for seeds in shares.values() for line in seeds.values()])
        areas = {arm: _areas(shares, worst) for arm, shares in by_replay.items() if len(shares) > 1}
        group = []
        for arm, own in areas.items():
            if not own:
                continue
            difference = None
            if arm != reference and reference in areas:
                both = sorted(set(own) & set(areas[reference]))
                difference = paired([own[seed] for seed in both], [areas[reference][seed] for seed in both])
            points = tuple((replay, *_mean_point(seeds)) for replay, seeds in sorted(by_replay[arm].items()))
            area = sum(own.values()) / len(own)
            group.append(Front(scenario, model, fraction, arm, points, area, difference))
        found += sorted(group, key=lambda front: (-front.area, front.arm))
    return found


def dominated_area(points: Sequence[Point], worst: Point) -> float:
    """Return the area between points and the worst one that some point is better than, lower being better in both
    coordinates.

    >>> dominated_area([(1.0, 2.0), (2.0, 1.0)], worst=(3.0, 3.0))
    3.0
    """
    area, reached = 0.0, worst[1]
    for x, y in sorted(points):
        if x < worst[0] and y < reached:
            area += (worst[0] - x) * (reached - y)
            reached = y
    return area


def _areas(shares: dict[float, dict[int, Line]], worst: Point) -> dict[int, float]:
    """Return the dominated area of each seed that has every replay share."""
    seeds = set.intersection(*(set(runs) for runs in shares.values()))
    return {seed: dominated_area([_point(runs[seed]) for runs in shares.values()], worst) for seed in sorted(seeds)}


def _worst(lines: Sequence[Line]) -> Point:
    points = [_point(line) for line in lines]
    return max(x for x, _ in points), max(y for _, y in points)


def _point(line: Line) -> Point:
    return line["others_bpb"], line["target_bpb"]


def _mean_point(seeds: dict[int, Line]) -> Point:
    points = [_point(line) for line in seeds.values()]
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
