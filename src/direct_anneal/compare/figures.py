"""The figures of a comparison's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from direct_anneal.compare.statistics import Row
from direct_anneal.compare.tables import pareto_front
from direct_anneal.io.sanitize import sanitized
from direct_anneal.report.drawing import colour, draw, plainly

if TYPE_CHECKING:
    from direct_anneal.compare.report import Group

LABEL_CHARACTERS = 20


def differences(name: str, rows: Sequence[Row], reference: str) -> Markup:
    """Return differences to the reference on the target and on others, with their intervals."""
    arms = [row for row in rows if row.arm != reference]

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for place, row in enumerate(arms):
            for shift, kind, difference in (
                (-0.14, "selected", row.target_difference),
                (0.14, "pool", row.others_difference),
            ):
                if difference is None:
                    continue
                if difference.low is not None and difference.high is not None:
                    axes.plot([difference.low, difference.high], [place + shift] * 2, color=colour(kind), linewidth=2)
                axes.plot(difference.mean, place + shift, marker="o", markersize=7, color=colour(kind))
        axes.axvline(0, color=colour("ink"), linewidth=1)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_yticks(range(len(arms)), [_label(row.arm) for row in arms])
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.set_xlabel(f"bits per byte, minus {_label(reference)}" + ("" if narrow else ": left is better"))
        plainly(axes.xaxis.label, *axes.get_yticklabels())

    height = 70 + 34 * max(1, len(arms))
    return draw(name, plot, wide=height, narrow=height, alt="Differences of every arm to the reference.")


def pareto(name: str, rows: Sequence[Row], before: Row) -> Markup:
    """Draw gain on the target over gain on the other domains, both since before annealing."""
    points = [(before.others - row.others, before.target - row.target) for row in rows]
    front = pareto_front(points)

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        edge = sorted(point for point, on_front in zip(points, front, strict=True) if on_front)
        axes.plot(*zip(*edge, strict=True), color=colour("selected"), linewidth=1, alpha=0.6)
        for (x, y), row, on_front in zip(points, rows, front, strict=True):
            axes.plot(x, y, marker="o", markersize=8, color=colour("selected" if on_front else "pool"))
            if on_front or not narrow:
                place = (7, 4) if on_front else (7, -12)
                text = axes.annotate(_label(row.arm), (x, y), xytext=place, textcoords="offset points")
                plainly(text)
        axes.axvline(0, color=colour("muted"), linewidth=0.8)
        axes.axhline(0, color=colour("muted"), linewidth=0.8)
        axes.margins(0.16)
        axes.locator_params(nbins=5)
        axes.set_title("Gain on the target, bits per byte")
        axes.set_xlabel("gain on others, bits per byte")

    return draw(name, plot, wide=400, narrow=320, alt="Gain on the target against gain on others.")


def by_domain(name: str, group: Group, reference: str) -> Markup:
    """Draw every arm's difference to the reference in every domain: better ones blue, worse ones orange."""
    arms = [row.arm for row in group.rows if row.arm != reference]
    base = group.domain_bpb[reference]
    domains = sorted(base, key=lambda domain: (domain not in group.target, domain))
    values = np.array([[group.domain_bpb[arm][domain] - base[domain] for arm in arms] for domain in domains])
    largest = max(float(np.abs(values).max(initial=0.0)), 1e-12)

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for (y, x), value in np.ndenumerate(values):
            kind = "selected" if value < 0 else "reference"
            axes.barh(y, 0.94, height=0.9, left=x - 0.47, color=colour(kind), alpha=0.85 * abs(value) / largest)
            if not narrow and len(arms) <= 9:
                axes.text(x, y, f"{value:+.3f}", ha="center", va="center", fontsize=10)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_ylim(len(domains) - 0.5, -0.5)
        axes.set_xticks(range(len(arms)), [_label(arm) for arm in arms], rotation=90)
        labels = [("◆ " if domain in group.target else "") + _label(domain) for domain in domains]
        axes.set_yticks(range(len(domains)), labels)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        plainly(*axes.get_xticklabels(), *axes.get_yticklabels())

    height = 170 + 24 * len(domains)
    return draw(name, plot, wide=height, narrow=height, alt="Differences to the reference by domain and arm.")


def _label(text: str) -> str:
    return sanitized(" ".join(text.split()), LABEL_CHARACTERS)
