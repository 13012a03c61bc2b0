"""Draws stiff_and_flat.svg: a valley from above, and what six samples do along either axis.

Run it with matplotlib installed: python docs/figures/stiff_and_flat.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams |= {"svg.hashsalt": "stiff and flat", "font.size": 10, "svg.fonttype": "none"}

STIFF, FLAT = "#b3490f", "#2b6ca3"  # orange and blue, told apart by all
CURVATURE = np.array([0.06, 1.0])  # along the floor, and up the walls
HERE = np.array([-3.0, 0.25])  # the checkpoint at the onset of annealing

# Steps that six samples would take (minus their gradients): along the floor, and across it.
STEPS = {
    "a": (1.15, 0.05),
    "b": (0.95, -0.22),
    "c": (0.75, 0.42),
    "d": (0.30, -0.72),
    "e": (0.12, 0.80),
    "f": (-0.55, -0.30),
}
CHOSEN = ("a", "b", "c")


def valley(axes: Axes) -> None:
    """Lines of equal loss, the floor, the checkpoint and the samples' steps."""
    x, y = np.meshgrid(np.linspace(-4.4, 1.6, 240), np.linspace(-1.6, 1.6, 160))
    loss = 0.5 * (CURVATURE[0] * x**2 + CURVATURE[1] * y**2)
    axes.contour(x, y, loss, levels=np.geomspace(0.02, 1.6, 9), colors="0.72", linewidths=0.8)
    axes.plot([-4.4, 0], [0, 0], color=FLAT, lw=1, ls=(0, (6, 4)))
    axes.plot(0, 0, marker="*", ms=12, color=FLAT)
    axes.text(0.12, 0.14, "lowest loss", color=FLAT)
    axes.annotate("", (-2.2, -1.35), (-3.4, -1.35), arrowprops={"arrowstyle": "->", "color": FLAT, "lw": 1.6})
    axes.text(-3.4, -1.28, "flat: the floor, lasting progress", color=FLAT, va="bottom")
    axes.annotate("", (1.2, 1.35), (1.2, 0.45), arrowprops={"arrowstyle": "<->", "color": STIFF, "lw": 1.6})
    axes.text(1.08, 0.9, "stiff: the walls,\nmostly noise", color=STIFF, ha="right", va="center")
    for name, step in STEPS.items():
        tip = HERE + step
        shade = "0.1" if name in CHOSEN else "0.55"
        axes.annotate("", tip, HERE, arrowprops={"arrowstyle": "-|>", "lw": 1.8, "color": shade})
        axes.text(*(tip + 0.1 * np.sign(step)), name, ha="center", va="center", color=shade)
    axes.plot(*HERE, marker="o", ms=7, color="0.1")
    axes.text(HERE[0] - 0.12, HERE[1] + 0.12, "checkpoint", ha="right")
    axes.set(
        xlim=(-4.4, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[], title="The loss from above, and six samples' pull"
    )


def ledger(axes: Axes) -> None:
    """Each sample's progress along the floor and its stiff cost, and the budget that the chosen three share."""
    places = np.arange(len(STEPS))[::-1]
    steps = np.array(list(STEPS.values()))
    cost = CURVATURE[1] * steps[:, 1] ** 2
    axes.barh(places + 0.19, steps[:, 0], 0.34, color=FLAT, label="progress along the floor")
    axes.barh(places - 0.19, cost, 0.34, color=STIFF, label="stiff cost: curvature × (way across)²")
    for place, name in zip(places, STEPS, strict=True):
        axes.text(1.24, place, "chosen" if name in CHOSEN else "", va="center", color="0.1")
    chosen = np.array([name in CHOSEN for name in STEPS])
    axes.text(
        -0.6,
        -1.55,
        f"The chosen three cost {cost[chosen].sum():.2f} together. A budget of the pool's mean\n"
        f"allows three samples {3 * cost.mean():.2f}; e alone would spend {cost[4]:.2f} of it.",
        va="top",
    )
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set(yticks=places, yticklabels=list(STEPS), xticks=[], xlim=(-0.65, 1.6), ylim=(-0.6, 5.6))
    axes.set_title("What each would bring, and cost")
    axes.legend(loc="upper left", frameon=False, bbox_to_anchor=(0.0, 0.02), ncols=2, fontsize=9)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Draw beside this file."""
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    valley(left)
    ledger(right)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None}, transparent=False)


if __name__ == "__main__":
    main()
