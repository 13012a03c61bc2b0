"""Figures that belong to their page: SVG with text to select, in colours that the style sheet decides."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# Widths in CSS pixels: text must be as large on a phone as on a desk, so that every figure is drawn for both.
WIDE, NARROW = 720, 340

# The colours of style.css by name. matplotlib wants numbers: these stand for them until the figure is written.
COLOURS = ("ink", "muted", "rule", "pool", "selected", "reference", *(f"kind-{i}" for i in range(6)), "others")
_STANDING = {name: f"#00{i:02x}fe" for i, name in enumerate(COLOURS, start=1)}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 12.0,
    "axes.edgecolor": _STANDING["muted"],
    "axes.labelcolor": _STANDING["muted"],
    "axes.labelsize": 12.0,
    "axes.titlecolor": _STANDING["muted"],
    "axes.titlelocation": "left",
    "axes.titlesize": 12.0,
    "axes.titlepad": 10.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _STANDING["rule"],
    "grid.linewidth": 1.0,
    "text.color": _STANDING["ink"],
    "xtick.color": _STANDING["muted"],
    "ytick.color": _STANDING["muted"],
    "xtick.labelsize": 12.0,
    "ytick.labelsize": 12.0,
    "ytick.left": False,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "xtick.minor.size": 0.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def colour(name: str) -> str:
    """Convert one of `COLOURS` for matplotlib."""
    return _STANDING[name]


@dataclass(frozen=True)
class Margins:
    """Room for labels beside each plot of a figure, in CSS pixels."""

    left: int
    bottom: int
    top: int = 28
    right: int = 20

    def apply(self, figure: Figure) -> None:
        """Place the plots of a figure, which are a row or a column of equal ones."""
        width, height = 72 * figure.get_size_inches()
        rows, columns = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()  # type: ignore[union-attr]
        across, down = self.left + self.right, self.top + self.bottom
        figure.subplots_adjust(
            left=self.left / width,
            right=1 - self.right / width,
            bottom=self.bottom / height,
            top=1 - self.top / height,
            wspace=across / (width / columns - across),
            hspace=down / (height / rows - down),
        )


def draw(
    name: str,
    plot: Callable[[Figure, bool], object],
    *,
    wide: int,
    narrow: int,
    alt: str,
    margins: Margins | None = None,
) -> Markup:
    """Draw a figure for both widths, of which the style sheet shows one.

    Args:
        name: unique on its page.
        plot: draws on the figure that it is given; the flag says whether it is the narrow one.
        wide, narrow: heights, in CSS pixels.
        alt: what is seen there, for those who cannot see it.
        margins: None where labels may have any length: each is then measured first.

    The same plot gives the same bytes.

    Cost: some 0.1 s of a processor; twice that where labels are measured.
    """
    drawings = []
    for kind, size in (("wide", (WIDE, wide)), ("narrow", (NARROW, narrow))):
        identity: dict[str, Any] = {"svg.hashsalt": f"{name} {kind}"}
        with rc_context(_STYLE | identity), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
            figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout=None if margins else "constrained")
            plot(figure, kind == "narrow")
            if margins:
                margins.apply(figure)
            stream = StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
        drawings.append(_inline(stream.getvalue(), kind, alt))
    return Markup("").join(drawings)


def _inline(document: str, kind: str, alt: str) -> Markup:
    """Take the SVG element without its style sheet, fonts, size and counted ids, which would leak into the page."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]+"', "<g", body)
    body = re.sub(r"font-family: [^;\"]+; ", "", body)
    head, _, rest = body.partition(">")
    (box,) = re.findall(r'viewBox="[\d. ]+"', head)
    for name, number in _STANDING.items():
        rest = rest.replace(number, f"var(--{name})")
    return Markup('<svg class="{}" role="img" aria-label="{}" ').format(kind, alt) + Markup(f"{box}>{rest}")


def plainly(*texts: Any) -> None:
    """See that texts of any origin are shown as they are: a pair of dollars in them is no formula."""
    for text in texts:
        text.set_parse_math(False)
