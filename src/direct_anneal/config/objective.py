"""Which member of the family of objectives is asked for; its formulas stand in `formulation`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from direct_anneal.config.options import described, require, settle
from direct_anneal.errors import InputError
from direct_anneal.solver import Objective

Filter = Literal["newton", "flat", "none"]
FilterCurvature = Literal["validation", "pool", "both"]
Gradients = Literal["raw", "unit"]
Noise = Literal["raw", "centred"]
Reference = Literal["pool", "validation"]
Ratio = float | Literal["none"]

# Of each objective, where nothing else is asked for.
FILTERS: dict[Objective, Filter] = {"energy": "flat", "descent": "newton", "matching": "newton"}
GRADIENTS: dict[Objective, Gradients] = {"energy": "raw", "descent": "unit", "matching": "unit"}
BUDGET_RATIOS: dict[Objective, Ratio] = {"energy": 1.0, "descent": "none", "matching": "none"}
DAMPING = 0.01
NGRAM_WEIGHT = 1.0
TARGET_SCALE = 8.0


def counterpart(objective: Objective) -> Objective:
    """What is shown beside a selection for comparison: the paper's objective, or beside that ours."""
    return "matching" if objective == "energy" else "energy"


@dataclass(frozen=True, kw_only=True, repr=False)
class Member:
    """An objective and its stiff budget; what is left out is filled in with the objective's own defaults.

    Attributes:
        objective, target_scale, filter, damping, filter_curvature, gradients, ngram_weight, noise, bands, budget_ratio,
            budget_reference: as in `SelectConfig`.

    Raises:
        InputError: a value is out of range, or two exclude each other.

    >>> Member(objective="energy").filter
    'flat'
    """

    objective: Objective = "matching"
    target_scale: float | None = None
    filter: Filter | None = None
    damping: float | None = None
    filter_curvature: FilterCurvature | None = None
    gradients: Gradients | None = None
    ngram_weight: float | None = None
    noise: Noise = "raw"
    bands: int = 1
    budget_ratio: Ratio | None = None
    budget_reference: Reference = "pool"

    def __repr__(self) -> str:
        return described(self)

    def __post_init__(self) -> None:
        settle(self)
        ratio = BUDGET_RATIOS[self.objective] if self.budget_ratio is None else self.budget_ratio
        must = "a number above 0 and at most 1e6, or none"
        require(ratio == "none" or 0 < ratio <= 1e6, "budget_ratio", must, ratio)
        require(self.bands >= 1, "bands", "at least 1", self.bands)
        if self.target_scale is not None and self.objective != "matching":
            raise InputError(
                f"--target-scale is of --objective matching, but the objective is {self.objective}: leave it out"
            )
        scale = TARGET_SCALE if self.target_scale is None else self.target_scale
        require(0 < scale <= 1e6, "target_scale", "above 0 and at most 1e6", scale)
        if self.objective == "matching":
            object.__setattr__(self, "target_scale", scale)
        filter = self.filter or FILTERS[self.objective]
        if (self.objective, filter) == ("energy", "newton"):
            raise InputError(
                "--filter newton weighs progress along a direction, which --objective energy has none of: pass "
                "--objective matching or descent, or --filter flat or none"
            )
        for field in ("damping", "filter_curvature"):
            if getattr(self, field) is not None and filter != "newton":
                flag = f"--{field.replace('_', '-')}"
                raise InputError(f"{flag} is of --filter newton, but the filter is {filter}: leave it out")
        damping = (DAMPING if self.damping is None else self.damping) if filter == "newton" else None
        # Less would be lost in the rounding of H, which then need not be positive definite.
        fits = damping is None or 1e-10 <= damping <= 1e6
        require(fits, "damping", "above 0, at least 1e-10, and at most 1e6", damping)
        object.__setattr__(self, "filter", filter)
        object.__setattr__(self, "damping", damping)
        if filter == "newton":
            object.__setattr__(self, "filter_curvature", self.filter_curvature or "both")
        object.__setattr__(self, "gradients", self.gradients or GRADIENTS[self.objective])
        object.__setattr__(self, "budget_ratio", ratio)
        self._settle_ngrams()

    def _settle_ngrams(self) -> None:
        """N-grams have no norm of their own to be raw in, and no stiff directions."""
        fits = (self.gradients, self.filter) == ("unit", "newton") and self.filter_curvature != "validation"
        weight = (NGRAM_WEIGHT if fits else 0.0) if self.ngram_weight is None else self.ngram_weight
        require(0 <= weight <= 1e3, "ngram_weight", "at least 0 and at most 1000", weight)
        if weight > 0 and not fits:
            raise InputError(
                "--ngram-weight above 0 needs --gradients unit and --filter newton with --filter-curvature pool or "
                f"both, got {self.gradients}, {self.filter} and {self.filter_curvature or 'no curvature'}: leave it out"
            )
        object.__setattr__(self, "ngram_weight", float(weight))

    @property
    def allowance(self) -> float:
        """The budget's ratio as a number: infinite where there is no budget."""
        assert self.budget_ratio is not None
        return math.inf if self.budget_ratio == "none" else self.budget_ratio
