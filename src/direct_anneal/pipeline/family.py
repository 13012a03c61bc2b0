"""Which member of the family of objectives is asked for; its formulas stand in `formulation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from direct_anneal.errors import InputError
from direct_anneal.options import described, require, settle
from direct_anneal.selection import Objective

Filter = Literal["newton", "flat", "none"]
Gradients = Literal["raw", "unit"]
Noise = Literal["raw", "centred"]
Reference = Literal["pool", "validation"]

# Of each objective, where nothing else is asked for.
FILTERS: dict[Objective, Filter] = {"energy": "flat", "descent": "newton"}
GRADIENTS: dict[Objective, Gradients] = {"energy": "raw", "descent": "unit"}
DAMPING = 0.1


@dataclass(frozen=True, kw_only=True, repr=False)
class Member:
    """An objective and its stiff budget; what is left out is filled in with the objective's own defaults.

    Attributes:
        objective, filter, damping, gradients, noise, bands, budget_ratio, budget_reference: as in `SelectConfig`.

    Raises:
        InputError: a value is out of range, or two exclude each other.

    >>> Member(objective="descent").filter
    'newton'
    """

    objective: Objective = "energy"
    filter: Filter | None = None
    damping: float | None = None
    gradients: Gradients | None = None
    noise: Noise = "raw"
    bands: int = 1
    budget_ratio: float = 1.0
    budget_reference: Reference = "pool"

    def __repr__(self) -> str:
        return described(self)

    def __post_init__(self) -> None:
        settle(self)
        require(0 < self.budget_ratio <= 1e6, "budget_ratio", "above 0 and at most 1e6", self.budget_ratio)
        require(self.bands >= 1, "bands", "at least 1", self.bands)
        filter = self.filter or FILTERS[self.objective]
        if (self.objective, filter) == ("energy", "newton"):
            raise InputError(
                "--filter newton weighs progress along a direction, which --objective energy has none of: pass "
                "--objective descent, or --filter flat or none"
            )
        if self.damping is not None and filter != "newton":
            raise InputError(f"--damping is of --filter newton, but the filter is {filter}: leave it out")
        damping = (DAMPING if self.damping is None else self.damping) if filter == "newton" else None
        require(damping is None or 0 < damping <= 1e6, "damping", "above 0 and at most 1e6", damping)
        object.__setattr__(self, "filter", filter)
        object.__setattr__(self, "damping", damping)
        object.__setattr__(self, "gradients", self.gradients or GRADIENTS[self.objective])
