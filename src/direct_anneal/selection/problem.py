"""What is asked of a selection.

N samples, K selected, R sketch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from direct_anneal.selection.matrix import FeatureMatrix

Objective = Literal["energy", "descent"]


class InfeasibleBudgetError(ValueError):
    """No selection of the size asked for stays within the stiff budget.

    Attributes:
        budget: what was allowed, absolute.
        least_feasible: the smallest budget that some selection of that size meets, absolute.
    """

    def __init__(self, budget: float, least_feasible: float) -> None:
        super().__init__(
            f"the budget must be at least {least_feasible:.6g}, the stiff cost of the cheapest selection of this size, "
            f"but is {budget:.6g}: raise it or select less"
        )
        self.budget = budget
        self.least_feasible = least_feasible


@dataclass(frozen=True)
class SelectionProblem:
    """Choose samples that go far together, under a budget of stiff cost.

        energy:   maximise ‖Σ_i w_i x_i‖²            (arXiv:2605.31175, eq. of the selection problem)
        descent:  maximise Σ_i w_i ⟨x_i, target⟩     (ours: knows the sign of progress, and is linear)
        subject to 0 ≤ w_i ≤ 1,  Σ_i a_i w_i ≤ budget,  and Σ_i w_i = K  or  Σ_i n_i w_i = token_budget.

    Args:
        features: X, shape (N, R): what each sample contributes (flat gradients for `energy`).
        stiff_cost: a ≥ 0, shape (N,).
        num_selected: K. Exactly one of this and `token_budget` is given.
        budget: τ, absolute, in units of `stiff_cost`.
        objective: "energy" or "descent".
        target: shape (R,), the direction of progress; for `descent` only.
        num_tokens: n ≥ 1, shape (N,); counts with `token_budget` only.
        token_budget: B. The selection holds at most B tokens, and nothing that is left would still fit.
        tie_order: shape (N,), a rank for each sample; among equals the lower one is chosen. Position where left
            out. Give the rank of the sample's id to make selections independent of the order of the pool.

    Raises:
        ValueError: shapes disagree, numbers are not finite, or the size asked for is not in 1..N.
    """

    features: FeatureMatrix | NDArray[np.floating]
    stiff_cost: NDArray[np.floating]
    num_selected: int | None = None
    budget: float = np.inf
    objective: Objective = "energy"
    target: NDArray[np.floating] | None = None
    num_tokens: NDArray[np.integer] | None = None
    token_budget: int | None = None
    tie_order: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2:
            raise ValueError(f"features must have shape (N, R), got {self.features.shape}")
        num_samples, sketch_size = self.features.shape
        cost = np.asarray(self.stiff_cost)
        if cost.shape != (num_samples,):
            raise ValueError(f"stiff_cost has shape {cost.shape}, features {num_samples} rows: one cost per sample")
        if not np.all(np.isfinite(cost)) or np.any(cost < 0):
            raise ValueError("stiff_cost must be finite and ≥ 0: leave out samples whose gradient is not finite")
        if not self.budget >= 0:
            raise ValueError(f"budget must be ≥ 0, got {self.budget}")
        if (self.num_selected is None) == (self.token_budget is None):
            raise ValueError("give exactly one of num_selected and token_budget")
        if self.num_selected is not None and not 1 <= self.num_selected <= num_samples:
            raise ValueError(
                f"num_selected must be in 1..{num_samples}, the number of samples, got {self.num_selected}"
            )
        if self.token_budget is not None:
            if self.num_tokens is None or np.shape(self.num_tokens) != (num_samples,) or np.any(self.num_tokens < 1):
                raise ValueError(f"token_budget needs num_tokens ≥ 1 of shape ({num_samples},)")
            if self.token_budget < np.min(self.num_tokens):
                raise ValueError(f"token_budget {self.token_budget} is less than the shortest sample")
            if self.token_budget > np.sum(self.num_tokens):
                raise ValueError(f"token_budget {self.token_budget} is more than the samples have together")
        if self.objective not in ("energy", "descent"):
            raise ValueError(f'objective must be "energy" or "descent", got {self.objective!r}')
        if (self.objective == "descent") != (self.target is not None):
            raise ValueError("the objective descent needs a target, and energy takes none")
        if self.target is not None and np.shape(self.target) != (sketch_size,):
            raise ValueError(f"target has shape {np.shape(self.target)}, features R={sketch_size}")
        if self.target is not None and not np.all(np.isfinite(self.target)):
            raise ValueError("target must be finite")
        if self.tie_order is not None and (
            np.shape(self.tie_order) != (num_samples,) or not np.all(np.isfinite(self.tie_order))
        ):
            raise ValueError(f"tie_order must be finite and of shape ({num_samples},)")
