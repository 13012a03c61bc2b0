"""The selection and its evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.notebook import facts


@dataclass(frozen=True)
class Selection:
    """The chosen samples, and what shows that they are a good choice.

    Attributes:
        indices: (K,), the chosen samples, strongest first (by score, by tokens score per token; then by the order of
            ties).
        weights: (N,), the solution of the relaxed problem that `indices` was rounded, and but for `descent` improved,
            from.
        scores: (N,), what each sample adds: ⟨x_i, u⟩ with u the unit vector of the summed selection (`energy`), of the
            target (`descent`), or of what the selection still lacks of it (`matching`).
        objective: of the integer selection, recomputed from its rows.
        bound: no selection within size and budget has a larger objective.
        budget: τ as it was asked for; with bands shape (m,).
        budget_used: Σ a_i over the chosen, summed exactly; at most `budget`, up to 1e-12 of it; with bands shape (m,).
        status: "optimal" (objective meets the bound to 1e-9), "rounded" (the relaxed problem is solved exactly, and
            rounding cost something) or "stationary" (a local optimum of a convex objective).
        stats: counts and values of the search, plain numbers and lists.
    """

    indices: NDArray[np.intp]
    weights: NDArray[np.float64]
    scores: NDArray[np.float64]
    objective: float
    bound: float
    budget: Any
    budget_used: Any
    status: str
    stats: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        within = f", within {1 - self.objective / self.bound:.2%} of its bound" if self.objective > 0 else ""
        return facts(
            f"Selection of {len(self.indices):,} from {len(self.weights):,} samples",
            {
                "objective": f"{self.objective:.6g} ({self.status}{within})",
                "budget": f"used {self._used(4)}",
                "strongest": ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else ""),
            },
        )

    def __repr__(self) -> str:
        return (
            f"Selection({len(self.indices)} of {len(self.weights)} samples, objective {self.objective:.6g} "
            f"(bound {self.bound:.6g}), budget used {self._used(6)}, {self.status})"
        )

    def _used(self, digits: int) -> str:
        used, budget = (
            " ".join(f"{one:.{digits}g}" for one in np.atleast_1d(of)) for of in (self.budget_used, self.budget)
        )
        return f"{used} of {budget}" if np.isfinite(self.budget).any() else f"{used}, no limit"
