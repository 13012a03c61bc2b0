"""The table for people, and the plot of what is gained against what is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.fronts import Front
from direct_anneal.compare.statistics import Difference, Row
from direct_anneal.compare.verdicts import Verdict, recommendation
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing

HEADINGS = (
    "arm",
    "seeds",
    "target bits/byte",
    "− reference [95 %]",
    "p",
    "others",
    "− reference [95 %]",
    "p",
    "accuracy",
    "selection s",
    "training s",
)


def markdown(
    rows: Sequence[Row],
    reference: str,
    fronts: Sequence[Front] = (),
    verdicts: Sequence[Verdict] = (),
    caveats: Sequence[str] = (),
) -> str:
    """Write verdicts, fronts and a table for each scenario, fraction and replay share; below 0 is better."""
    before = {(row.scenario, row.model): row for row in rows if row.arm == BEFORE}
    parts = [
        "# Comparison\n\nBits per byte on held-out documents, lower is better; *others* are the domains that are not "
        f"the target's. Differences to `{reference}` are paired by seed, with paired-t intervals and p-values that are "
        "not corrected for the number of arms. They hold for this pool, validation set and checkpoint.\n"
    ]
    if verdicts:
        said = [*(f"**{line}**" for line in recommendation(verdicts)), *map(_judged, verdicts)]
        parts.append("## Verdicts\n\n" + "\n".join(f"- {line}" for line in said) + "\n")
    if caveats:
        parts.append("\n".join(f"- {line}" for line in caveats) + "\n")
    for scenario, model, fraction in dict.fromkeys((front.scenario, front.model, front.fraction) for front in fronts):
        own = [
            front for front in fronts if (front.scenario, front.model, front.fraction) == (scenario, model, fraction)
        ]
        lines = ["| arm | dominated area | − reference [95 %] | p |", "|---|--:|--:|--:|"]
        lines += [f"| {one.arm} | {one.area:.5f} | {' | '.join(_difference(one.difference, 5))} |" for one in own]
        parts.append(
            f"## Fronts: {scenario}, {model}, {fraction:g} of the pool's tokens\n\nTarget against others over the "
            "replay shares; a larger area is better.\n\n" + "\n".join(lines) + "\n"
        )
    for key in dict.fromkeys((row.scenario, row.model, row.fraction, row.replay) for row in rows):
        scenario, model, fraction, replay = key
        if fraction == 0:
            continue
        start = before.get((scenario, model))
        since = f"; before annealing {start.target:.4f}, others {start.others:.4f}" if start else ""
        beside = f", {replay:.0%} replay" if replay else ""
        parts.append(f"## {scenario}, {model}, {fraction:g} of the pool's tokens{beside}\n\nTarget{since}.\n")
        lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "--:|" * (len(HEADINGS) - 1)]
        lines += [
            "| " + " | ".join(cells(row)) + " |"
            for row in rows
            if (row.scenario, row.model, row.fraction, row.replay) == key
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _judged(verdict: Verdict) -> str:
    return f"{verdict.scenario}, {verdict.model}, {verdict.fraction:g}: {verdict.sentence}"


def cells(row: Row) -> list[str]:
    """Return one row as texts, in the order of HEADINGS."""
    differences = []
    for value, difference in ((row.target, row.target_difference), (row.others, row.others_difference)):
        differences += [f"{value:.4f}", *_difference(difference)]
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
    seconds = [f"{row.selection_seconds:.0f}", f"{row.training_seconds:.0f}"]
    return [row.arm, str(row.num_seeds), *differences, accuracy, *seconds]


def _difference(difference: Difference | None, digits: int = 4) -> tuple[str, str]:
    if difference is None:
        return "", ""
    if difference.p_value is None:
        return f"{difference.mean:+.{digits}f}", ""
    interval = f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return interval, "<0.0001" if difference.p_value < 1e-4 else f"{difference.p_value:.4f}"


def plot_pareto(rows: Sequence[Row], path: Path) -> None:
    """Plot, for each scenario and fraction, gain on the target over gain on others, both since before annealing.

    An arm's replay shares are one line. Up and to the right is better; a run is on the front where none is better in
    both.

    Raises:
        InputError: there is nothing to plot.
    """
    before = {(row.scenario, row.model): row for row in rows if row.arm == BEFORE}
    groups = list(dict.fromkeys((row.scenario, row.model, row.fraction) for row in rows if row.fraction > 0))
    if not groups:
        raise InputError("a plot needs at least one annealed arm, but there is none yet")
    columns = min(len(groups), 3)
    height = -(-len(groups) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height), layout="constrained")
    for number, (scenario, model, fraction) in enumerate(groups):
        axes = figure.add_subplot(height, columns, number + 1)
        start = before[scenario, model]
        own = [row for row in rows if (row.scenario, row.model, row.fraction) == (scenario, model, fraction)]
        points = [(start.others - row.others, start.target - row.target) for row in own]
        front = dict(zip(points, pareto_front(points), strict=True))
        for arm in dict.fromkeys(row.arm for row in own):
            placed = sorted((row.replay, point) for row, point in zip(own, points, strict=True) if row.arm == arm)
            places = [point for _, point in placed]
            axes.plot(*zip(*places, strict=True), color="#5a6a7a", linewidth=0.8, zorder=2)
            for point in places:
                axes.scatter(*point, s=28, color="#c23b22" if front[point] else "#5a6a7a", zorder=3)
            axes.annotate(arm, places[0], xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.axvline(0, color="#bbbbbb", linewidth=0.6)
        axes.axhline(0, color="#bbbbbb", linewidth=0.6)
        axes.margins(0.18)
        axes.set_title(f"{scenario}, {model}, {fraction:g} of the pool", fontsize=9)
        axes.set_xlabel("gain on others, bits/byte (left of 0: forgetting)", fontsize=8)
        axes.set_ylabel("gain on the target, bits/byte", fontsize=8)
        axes.tick_params(labelsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=140)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Mark the Pareto-optimal points."""
    return [
        not any((x >= own_x and y >= own_y) and (x > own_x or y > own_y) for x, y in points) for own_x, own_y in points
    ]
