"""Reasons for which a document was chosen or left out: where it stands in the pool, part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Columns of selection.parquet that are no part of the gain: named otherwise, or not a gain.
_NOT_PARTS = frozenset(
    {
        "loss",
        "grad_norm",
        "stiff_cost",
        "score",
        "weight",
        "loss_start",
        "loss_replayed",
        "loss_end",
        "repeated",
        "common",
        "order",
    }
)
_CALLED = {"path": "loss drop along the path", "score": "score", "stiff_cost": "stiff cost"}


class Standing:
    """Shares of the pool's usable documents that a document leaves behind, by column.

    Args:
        usable: the ranked rows of selection.parquet.
    """

    def __init__(self, usable: pa.Table) -> None:
        floats = [field.name for field in usable.schema if pa.types.is_floating(field.type)]
        parts = [name for name in floats if name not in _NOT_PARTS]
        self._columns: dict[str, NDArray[np.float64]] = {}
        for name in (*self._score(usable), *parts, "stiff_cost"):
            values = usable[name].drop_null().to_numpy().astype(np.float64)
            values = np.sort(values[np.isfinite(values)])
            if len(values) and values[0] < values[-1]:
                self._columns[name] = values
        score = self._columns.get("score")
        if score is not None and any(np.array_equal(score, self._columns.get(part, ())) for part in parts):
            del self._columns["score"]  # it is one of its parts, and is shown under that name

    @staticmethod
    def _score(usable: pa.Table) -> tuple[str, ...]:
        """Say where the score puts a document, if the chosen ones have more of it.

        An objective that fills up a mix gives little to what the choice already has.
        """
        chosen = usable["selected"].to_numpy()
        score = usable["score"].to_numpy()
        told = chosen.any() and not chosen.all() and np.median(score[chosen]) > np.median(score[~chosen])
        return ("score",) if told else ()

    def described(self, row: dict[str, Any]) -> str:
        """Say where a row of the table stands, as "score in the top 1 %, stiff cost in the top 40 %"."""
        found = []
        for name, values in self._columns.items():
            value = row[name]
            if value is None or not np.isfinite(value):
                continue
            above = 1 - np.searchsorted(values, value, side="left") / len(values)
            below = np.searchsorted(values, value, side="right") / len(values)
            end, share = ("top", above) if above <= 0.5 else ("bottom", below)
            called = _CALLED.get(name, name.replace("_", " "))
            found.append(f"{called} in the {end} {max(0.01, share):.0%}")
        return ", ".join(found)
