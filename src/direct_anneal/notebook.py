"""HTML for notebooks: small tables and one curve, with every name escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_STIFF, _FLAT = "#c4501b", "#3b78b4"  # of Paul Tol's and Okabe-Ito's kind: told apart by all
_WIDTH, _HEIGHT, _MOST_BARS = 360, 90, 120


def facts(title: str, rows: Mapping[str, object]) -> str:
    """Return a title and a line for each fact, as HTML."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<b>{escape(title)}</b><table>{cells}</table>"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under heads, all as text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def scree(eigenvalues: Sequence[float], num_stiff: int) -> str:
    """Draw the leading eigenvalues as bars, their heights on a logarithmic scale; the stiff ones in another colour."""
    shown = [value for value in eigenvalues[:_MOST_BARS] if value > 0]
    top = math.log10(shown[0])
    span = max(top - math.log10(shown[-1]), 1e-9)
    step = _WIDTH / len(shown)
    bars = []
    for number, value in enumerate(shown):
        height = 4 + (_HEIGHT - 4) * (math.log10(value) - top + span) / span
        bars.append(
            f"<rect x='{number * step:.2f}' y='{_HEIGHT - height:.2f}' width='{0.85 * step:.2f}' "
            f"height='{height:.2f}' fill='{_STIFF if number < num_stiff else _FLAT}'/>"
        )
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='eigenvalues, stiff ones first'>"
        f"{''.join(bars)}</svg>"
    )
