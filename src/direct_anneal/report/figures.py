"""The figures of a selection's report.

n usable documents, s stiff directions, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from direct_anneal.report.data import Findings
from direct_anneal.report.drawing import Margins, colour, draw

POINTS = {True: 600, False: 1200}  # of documents drawn one by one, chosen and others
KINDS = 6  # domains that are told apart in colour
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")
Float = NDArray[np.float64]


def spectrum(findings: Findings) -> Markup:
    """Draw curvature along each direction, in sample and held out, and where stiff ends."""
    entry = findings.manifest["spectrum"]
    eigenvalues, stiff = np.array(entry["eigenvalues"]), entry["num_stiff"]
    places = np.arange(1, len(eigenvalues) + 1)

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        is_log = len(eigenvalues) > 10 * stiff
        left = 0.9 if is_log else 0.0
        axes.axvspan(left, stiff, color=colour("rule"), alpha=0.6, linewidth=0)
        axes.plot(places, eigenvalues, color=colour("ink"), linewidth=1.5)
        if entry["directions_in_sample"] is not None:
            for name, values in (("selected", "directions_in_sample"), ("reference", "directions_held_out")):
                energies = np.array(entry[values])
                axes.plot(np.arange(1, len(energies) + 1), energies, color=colour(name), linewidth=1.5)
        axes.axvline(stiff, color=colour("muted"), linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yscale("log")
        axes.set_ylim(bottom=_lowest(entry))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left, len(eigenvalues) * (1.1 if is_log else 1.02))
        if is_log:
            axes.set_xscale("log")
            _count_ticks(axes)
        axes.set_title("Curvature along a direction" if narrow else "Curvature, or mean squared gradient, along it")
        axes.set_xlabel("direction, stiffest first")

    share = f"{stiff} of {len(eigenvalues)} directions are stiff, and hold {entry['energy']:.1%} of the curvature"
    return draw(
        "spectrum", plot, wide=340, narrow=300, alt=f"The spectrum: {share}.", margins=Margins(left=52, bottom=42)
    )


def _lowest(entry: dict[str, Any]) -> float:
    """Find the end of the curvature axis: the last directions fall to nothing, and would squeeze the rest."""
    shown: list[float] = [value for name in ("eigenvalues", "directions_held_out") for value in entry[name] or []]
    return 0.8 * max(min(filter(None, shown)), 1e-5 * max(shown))


def trade_off(findings: Findings) -> Markup:
    """Draw stiff cost against flat progress, a point for each document or for some in even steps of rank."""
    usable = findings.usable
    cost, score, selected = (usable[name].to_numpy() for name in ("stiff_cost", "score", "selected"))
    objective = findings.manifest["objective"]
    if "matching" in (objective["name"], objective.get("chosen_by")):  # no document is 0, but the average one
        score = score - score.mean()
    order = np.argsort(usable["rank"].to_numpy())
    mean = max(float(cost.mean()), np.finfo(float).tiny)
    positive = cost[cost > 0]
    cost = np.maximum(cost, positive.min() if len(positive) else 1.0) / mean
    used = float(cost[selected].mean())

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for chosen, name in ((False, "pool"), (True, "selected")):
            of_kind = order[selected[order] == chosen]
            shown = of_kind[:: -(-len(of_kind) // POINTS[chosen]) or 1]
            axes.scatter(
                cost[shown],
                score[shown],
                s=14 if narrow else 20,
                color=colour(name),
                alpha=0.55 if chosen else 0.4,
                linewidths=0,
                zorder=3 if chosen else 2,
            )
        axes.set_xscale("log")
        axes.axvline(used, color=colour("muted"), linewidth=1, linestyle=(0, (4, 3)))
        axes.axhline(0, color=colour("muted"), linewidth=0.8)
        _multiple_ticks(axes)
        axes.set_title("Score" if narrow else "Score of a document")
        axes.set_xlabel("stiff cost, in means of the pool")

    alt = "Stiff cost against progress of each document, the chosen ones marked."
    return draw("trade-off", plot, wide=420, narrow=340, alt=alt)


def shifts(findings: Findings) -> Markup:
    """Draw loss and length, of the pool and of what was chosen."""
    table, usable = findings.table, findings.usable
    parts = (
        ("Loss, nats a token", usable["loss"].to_numpy(), usable["selected"].to_numpy(), False),
        ("Length, tokens", table["num_tokens"].to_numpy(), table["selected"].to_numpy(), True),
    )

    def plot(figure: Figure, narrow: bool) -> None:
        shape = (2, 1) if narrow else (1, 2)
        for number, (title, values, selected, is_log) in enumerate(parts, start=1):
            axes = figure.add_subplot(*shape, number)
            low, high = np.percentile(values, [0.25, 99.75])
            edges = _edges(float(low), float(high), is_log)
            for part, name in ((values, "pool"), (values[selected], "selected")):
                # What lies beyond the edges counts in the outer bins: nothing is left out of the shares.
                shares = np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] / len(part)
                axes.stairs(shares, edges, color=colour(name), fill=name == "pool", alpha=0.35 if name == "pool" else 1)
                middle = np.median(part) if is_log else part.mean()
                axes.plot([middle], [0], marker="^", color=colour(name), markersize=8, clip_on=False, zorder=4)
            if is_log:
                axes.set_xscale("log")
                _count_ticks(axes)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_PERCENT)
            axes.set_title(title)

    alt = "Histograms of loss and length: the pool, and what was chosen."
    return draw("shifts", plot, wide=260, narrow=460, alt=alt, margins=Margins(left=46, bottom=26))


def _edges(low: float, high: float, is_log: bool, bins: int = 36) -> Float:
    if not high > low:
        low, high = low * 0.9, low * 1.1 + 1e-9
    edges: Float = np.geomspace(max(low, 1.0), max(high, 2.0), bins) if is_log else np.linspace(low, high, bins)
    return edges


def budgets(points: list[dict[str, Any]], chosen: float, domains: list[str]) -> Markup:
    """Draw progress and domain shares for each budget.

    Args:
        points: a budget each, by ratio, two at least: ratio, objective, and counts of its choice by domain.
        chosen: the ratio of the selection itself.
        domains: those with a colour of their own; all others are summed.
    """
    ratios = np.array([row["ratio"] for row in points])
    # Below 0 lies what is worse than nothing, or of matching than an average selection.
    progress = np.maximum([row["objective"] for row in points], 0.0)
    progress = progress / (progress.max() or 1.0)
    shares = np.array(
        [[row["counts"].get(name, 0) / sum(row["counts"].values()) for row in points] for name in domains]
    )
    shares = np.vstack([shares, 1 - shares.sum(axis=0)])
    names = [f"kind-{i}" for i in range(len(domains))] + ["others"]

    def plot(figure: Figure, narrow: bool) -> None:
        shape = (2, 1) if narrow else (1, 2)
        left = figure.add_subplot(*shape, 1)
        left.plot(ratios, progress, color=colour("selected"), marker="o", markersize=5)
        at = int(np.argmin(np.abs(ratios - chosen)))
        left.plot(ratios[at], progress[at], marker="o", markersize=11, color=colour("reference"))
        left.set_ylim(0, 1.06)
        left.yaxis.set_major_formatter(_PERCENT)
        left.set_title("Progress, in shares of the most")
        right = figure.add_subplot(*shape, 2)
        right.stackplot(ratios, shares, colors=[colour(name) for name in names], linewidth=0)
        right.axvline(ratios[at], color=colour("ink"), linewidth=1, linestyle=(0, (4, 3)))
        right.set_ylim(0, 1)
        right.set_xlim(ratios[0], ratios[-1])
        right.yaxis.set_major_formatter(_PERCENT)
        right.set_title("Domains, in shares of documents")
        for axes in (left, right):
            axes.set_xscale("log")
            _multiple_ticks(axes)
            axes.set_xlabel("budget ratio")

    alt = "Progress and composition over stiff budgets, with the budget of this selection marked."
    return draw("budgets", plot, wide=300, narrow=560, alt=alt, margins=Margins(left=46, bottom=42))


def largest_domains(choices: Iterable[Mapping[str, int]]) -> list[str]:
    """Pick the domains that are the largest part of any choice, at most `KINDS`."""
    peaks: dict[str, float] = {}
    for counts in choices:
        for name, count in counts.items():
            peaks[name] = max(peaks.get(name, 0.0), count / sum(counts.values()))
    return sorted(peaks, key=lambda name: (-peaks[name], name))[:KINDS]


def _count_ticks(axes: Axes) -> None:
    """Mark powers of ten, and three times these where there is room, as whole numbers."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high > 3e2 * low else (1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _multiple_ticks(axes: Axes) -> None:
    """Mark multiples of something, as 0.3 or 10."""
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 30 * low else (1.0,) if high > 3e3 * low else (1.0, 3.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
