"""The table for people, and the plot of what is gained against what is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from direct_anneal.compare.config import BEFORE
from direct_anneal.compare.statistics import Difference, Row
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing

HEADINGS = (
    "arm",
    "seeds",
    "target bits/byte",
    "− reference [95 %]",
    "p",
    "all domains",
    "− reference [95 %]",
    "p",
    "selection s",
    "training s",
)


def markdown(rows: Sequence[Row], reference: str) -> str:
    """A table for each scenario and fraction; below 0 is better than the reference."""
    before = {(row.scenario, row.model): row for row in rows if row.arm == BEFORE}
    parts = [
        "# Comparison\n\nBits per byte on held-out documents, lower is better; differences to "
        f"`{reference}` are paired by seed, with paired-t intervals and p-values that are not corrected for the number "
        "of arms. They hold for this pool, validation set and checkpoint.\n"
    ]
    for scenario, model, fraction in dict.fromkeys((row.scenario, row.model, row.fraction) for row in rows):
        if fraction == 0:
            continue
        start = before.get((scenario, model))
        since = f"; before annealing {start.target:.4f}, all domains {start.macro:.4f}" if start else ""
        parts.append(f"## {scenario}, {model}, {fraction:g} of the pool's tokens\n\nTarget{since}.\n")
        lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "--:|" * (len(HEADINGS) - 1)]
        lines += [
            "| " + " | ".join(cells(row)) + " |"
            for row in rows
            if (row.scenario, row.model, row.fraction) == (scenario, model, fraction)
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def cells(row: Row) -> list[str]:
    """One row as texts, in the order of HEADINGS."""
    differences = []
    for value, difference in ((row.target, row.target_difference), (row.macro, row.macro_difference)):
        differences += [f"{value:.4f}", *_difference(difference)]
    return [row.arm, str(row.num_seeds), *differences, f"{row.selection_seconds:.0f}", f"{row.training_seconds:.0f}"]


def _difference(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    if difference.p_value is None:
        return f"{difference.mean:+.4f}", ""
    interval = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return interval, "<0.0001" if difference.p_value < 1e-4 else f"{difference.p_value:.4f}"


def plot_pareto(rows: Sequence[Row], path: Path) -> None:
    """For each scenario and fraction, gain on the target over gain on all domains, both since before annealing.

    Up and to the right is better; an arm is on the front where none is better in both.

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
        arms = [row for row in rows if (row.scenario, row.model, row.fraction) == (scenario, model, fraction)]
        points = [(start.macro - row.macro, start.target - row.target, row.arm) for row in arms]
        front = pareto_front([(x, y) for x, y, _ in points])
        for (x, y, arm), on_front in zip(points, front, strict=True):
            axes.scatter(x, y, s=28, color="#c23b22" if on_front else "#5a6a7a", zorder=3)
            axes.annotate(arm, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        edge = sorted((x, y) for (x, y, _), on_front in zip(points, front, strict=True) if on_front)
        axes.plot([x for x, _ in edge], [y for _, y in edge], color="#c23b22", linewidth=0.8, zorder=2)
        axes.axvline(0, color="#bbbbbb", linewidth=0.6)
        axes.axhline(0, color="#bbbbbb", linewidth=0.6)
        axes.margins(0.18)
        axes.set_title(f"{scenario}, {model}, {fraction:g} of the pool", fontsize=9)
        axes.set_xlabel("gain over all domains, bits/byte (left of 0: forgetting)", fontsize=8)
        axes.set_ylabel("gain on the target, bits/byte", fontsize=8)
        axes.tick_params(labelsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=140)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other is better than in one coordinate, and at least as good in the other."""
    return [
        not any((x >= own_x and y >= own_y) and (x > own_x or y > own_y) for x, y in points) for own_x, own_y in points
    ]
