"""The published objective: go far in flat directions, whichever way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from direct_anneal.config.objective import Filter, Gradients, Ratio, register
from direct_anneal.errors import InputError, option
from direct_anneal.objectives.inputs import Built, Inputs
from direct_anneal.objectives.sketched import SketchedObjective


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class EnergyConfig(SketchedObjective):
    """Maximise ‖Σ_i w_i F x_i‖², F = I − Σ_{j≤s} v_j v_jᵀ, or I with filter "none".

    Source: arXiv:2605.31175, Algorithm 2: raw gradients, flat filter, one band.
    """

    name: ClassVar[str] = "energy"
    goal: ClassVar[str] = "the longest sum of gradients in flat directions"
    meaning: ClassVar[str] = "the length of its gradient along the sum of the selection's flat gradients"

    filter: Filter = "flat"
    gradients: Gradients = "raw"
    budget_ratio: Ratio = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter == "newton":
            raise InputError(
                field="filter",
                must=f"be flat or none with {option('objective')} energy, which knows no direction of progress",
                got=self.filter,
                do=f"pass {option('objective')} matching or descent, or {option('filter')} flat or none",
            )

    def build(self, inputs: Inputs) -> Built:
        counted = self.counted(inputs)
        features = counted.matrix.like(scale=counted.scale, removed=self.removed(inputs))
        return self.budgeted(inputs, counted, features, objective="energy")
