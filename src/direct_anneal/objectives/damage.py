"""Limits beyond which a document counts as damaged and is left out.

N samples of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.options import require
from direct_anneal.objectives.base import SelectionObjective
from direct_anneal.objectives.inputs import Inputs
from direct_anneal.path import PathLosses

WITHOUT_SIGNS = {"max_repeated": 1.0, "max_common": 1.0, "min_order": 0.0}  # options that look at no sign
MOST_WITHOUT_ORDER = 0.5  # of the documents; beyond that it is not they that are shuffled


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Documents that look damaged.

    Attributes:
        left_out: whether each does, (N,); None where nothing is known.
        facts: how many by each sign, for the manifest.
        remarks: for the user.
        columns: the signs, (N,) each.
    """

    left_out: NDArray[np.bool_] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def beside(self, **own: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `Inputs.problem` takes of it, added to an objective's own facts and columns."""
        return {
            "left_out": self.left_out,
            "remarks": self.remarks,
            **{name: {**own.get(name, {}), **getattr(self, name)} for name in ("facts", "columns")},
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class DamageLimits(SelectionObjective):
    """Options of every objective that leaves out what bears a sign of damage (`path.damage`).

    Attributes:
        max_repeated: of a document's tokens, the largest share that may stand in runs that it has had before.
        max_common: of its tokens, the largest share in runs that several documents have.
        min_order: the least chance that the same words in random order are read worse; 0 looks at none.

    Source: ours (docs/path.md).
    """

    max_repeated: float = 0.5
    max_common: float = 0.7
    min_order: float = 0.93

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_repeated", "max_common"):
            require(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name))
        require(0 <= self.min_order < 1, "min_order", "in [0, 1)", self.min_order)

    @property
    def needs(self) -> frozenset[str]:
        is_limited = self.max_repeated < 1 or self.max_common < 1 or self.min_order > 0
        return super().needs | ({"signs"} if is_limited else set())

    def damage(self, inputs: Inputs) -> Damage:
        """Return documents that look damaged; none where nothing is known of their text, as of rows of arrays.

        Where more than half of the documents do not depend on the order of their words, it is the model that does not
        read it, or the pool that has none. Then that sign is not used, and the remark says so.
        """
        if not inputs.has("path"):
            return Damage()
        losses = inputs.path("pool")
        signs, remarks = self._signs(losses), list[str]()
        without = signs["are predicted no better than with their words shuffled"]
        if without.sum() > MOST_WITHOUT_ORDER * (read := int(np.isfinite(losses.order).sum())):
            remarks.append(
                f"pool: {int(without.sum()):,} of {read:,} documents are predicted no better than with their words "
                "shuffled, so that this is no sign of damage here, and none is left out for it: the model may be too "
                "weak to read the order of words, or the pool may have lost it"
            )
            without[:] = False
        left_out: NDArray[np.bool_] = np.any(list(signs.values()), axis=0)
        counts = {name: int(found.sum()) for name, found in signs.items()}
        if told := ", ".join(f"{count:,} {name}" for name, count in counts.items() if count):
            remarks.append(f"pool: {int(left_out.sum()):,} documents left out, because they look damaged: {told}")
        if self.min_order > 0 and not np.isfinite(losses.order).any():
            remarks.append("pool: the order of words was read in no document, so that none is left out for it")
        columns = {name: getattr(losses, name) for name in ("repeated", "common", "order")}
        return Damage(left_out=left_out, facts={"damaged": counts}, remarks=remarks, columns=columns)

    def _signs(self, losses: PathLosses) -> dict[str, NDArray[np.bool_]]:
        """Return documents with a sign of damage, (N,) each, by what it is."""
        return {
            "repeat themselves": losses.repeated > self.max_repeated,
            "share most of their text with others": losses.common > self.max_common,
            "are predicted no better than with their words shuffled": losses.order < self.min_order,  # NaN is not
        }
