"""Infeasibility: the constraint to relax, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csc_array, diags_array, hstack

if TYPE_CHECKING:
    from direct_anneal.solver.feasible import Polytope


@dataclass(frozen=True)
class Relaxation:
    """One constraint that stands in the way.

    Attributes:
        name: of the constraint, for people.
        asked: its limit.
        needed: the limit with which, all others kept, there is a selection.
    """

    name: str
    asked: float
    needed: float

    def __str__(self) -> str:
        side = "least" if self.needed > self.asked else "most"
        return f"{self.name} must be at {side} {self.needed:.6g}, but is {self.asked:.6g}"


class InfeasibleError(ValueError):
    """No selection meets all constraints.

    Attributes:
        relaxations: the constraints to relax, and how far; together they are enough, unless counting alone showed that
            it cannot be: then others may stand behind.
    """

    def __init__(self, message: str, relaxations: Sequence[Relaxation] = ()) -> None:
        super().__init__(message)
        self.relaxations = tuple(relaxations)

    @classmethod
    def of(cls, relaxations: Sequence[Relaxation]) -> InfeasibleError:
        """Return the error that names them."""
        return cls(f"{', and '.join(map(str, relaxations))}: relax one of these constraints", relaxations)


class InfeasibleBudgetError(InfeasibleError):
    """No selection of the size asked for, with all else that was asked, stays within the stiff budget.

    Attributes:
        budget: what was allowed, absolute; shape (m,) where there are bands.
        least_feasible: the smallest budget that some selection meets, absolute; with bands, the budgets times the least
            common factor that is enough. Where floors and ceilings, tokens or bands couple, fractions of samples
            count as selected here.
    """

    def __init__(
        self,
        budget: Any,
        least_feasible: Any,
        relaxations: Sequence[Relaxation] = (),
    ) -> None:
        if np.ndim(budget) == 0:
            message = (
                f"the budget must be at least {least_feasible:.6g}, the stiff cost of the cheapest selection of this "
                f"size, but is {budget:.6g}: raise it or select less"
            )
        else:
            asked, least = np.asarray(budget), np.asarray(least_feasible)
            proper = np.isfinite(asked) & (asked > 0)
            message = (
                f"{', and '.join(map(str, relaxations))}: relax one of these constraints, or raise all budgets to "
                f"{(least[proper] / asked[proper]).max():.6g} times, or select less"
            )
        super().__init__(message, relaxations or [Relaxation("the budget", budget, least_feasible)])
        self.budget = budget
        self.least_feasible = least_feasible


def check_amounts(polytope: Polytope) -> None:
    """Refuse what counting alone shows to be impossible.

    Raises:
        InfeasibleError: names the constraint, and the limit that it could have.
    """
    size, unit = polytope.weight, "samples" if polytope.size is None else "tokens"
    forced = float(size[polytope.forced_in].sum())
    if forced > polytope.capacity:
        raise InfeasibleError(
            f"the samples forced in must fit the {polytope.capacity:,.0f} {unit} asked for, but are {forced:,.0f}: "
            "force fewer, or select more",
            [Relaxation(f"the number of {unit}", polytope.capacity, forced)],
        )
    left = float(size[~polytope.forced_out].sum())
    if left < polytope.capacity:
        raise InfeasibleError(
            f"{polytope.capacity:,.0f} {unit} are asked for, but without those forced out the pool has {left:,.0f}: "
            "force fewer out, or select less",
            [Relaxation(f"the number of {unit}", polytope.capacity, left)],
        )
    for group in polytope.groupings:
        held, had = group.totals(polytope.forced_in), group.totals(~polytope.forced_out)
        for name, floor, ceiling, least, most in zip(
            group.names, group.floors, group.ceilings, held, had, strict=False
        ):
            if floor > most:
                raise InfeasibleError(
                    f"the floor of {name} asks for {floor:,.6g} {group.unit}, but the pool has {most:,.0f}"
                    f"{' that are not forced out' if polytope.forced_out.any() else ''}: lower it",
                    [Relaxation(f"the floor of {name}", floor, most)],
                )
            if ceiling < least:
                raise InfeasibleError(
                    f"the ceiling of {name} allows {ceiling:,.6g} {group.unit}, but {least:,.0f} are forced in: raise "
                    "it, or force fewer",
                    [Relaxation(f"the ceiling of {name}", ceiling, least)],
                )
            if floor > ceiling:
                raise InfeasibleError(
                    f"the floor of {name}, {floor:,.6g} {group.unit}, is above its ceiling, {ceiling:,.6g}: lower it",
                    [Relaxation(f"the floor of {name}", floor, ceiling)],
                )
        if group.unit == unit:
            floors = float(np.maximum(group.floors, held).sum())
            ceilings = float(np.minimum(group.ceilings, had).sum())
            if floors > polytope.capacity:
                raise InfeasibleError(
                    f"the floors ask for {floors:,.6g} {unit} together (samples forced in counted), but "
                    f"{polytope.capacity:,.0f} are to be selected: lower them by {floors - polytope.capacity:,.6g}",
                    [Relaxation("the sum of the floors", floors, polytope.capacity)],
                )
            if ceilings < polytope.capacity:
                raise InfeasibleError(
                    f"the ceilings leave room for {ceilings:,.6g} {unit} together, but {polytope.capacity:,.0f} are to "
                    f"be selected: raise them by {polytope.capacity - ceilings:,.6g}",
                    [Relaxation("the sum of the ceilings", ceilings, polytope.capacity)],
                )


def least_relaxations(polytope: Polytope, *, whole: bool) -> list[Relaxation]:
    """Return the constraints to relax so that some selection is feasible: as little as possible, budgets before quotas.

    Solves  min Σ_k p_k e_k  over w and e ≥ 0 with every row's limit moved by e_k, where e_k is in units of its limit
    and p_k is 1 for a budget and 1,000 for a floor or a ceiling. Where one constraint is named, no lesser relaxation
    of it alone would do.

    Args:
        whole: of whole samples (an integer program, for small N), or of fractions.

    Cost: one linear program over N samples by HiGHS; seconds at N = 10⁵.
    """
    rows, order = polytope.rows, polytope.by_tie
    num_samples, count = len(order), len(rows.names)
    matrix = csc_array(rows.matrix[:, order])
    scale = np.where(rows.limits > 0, rows.limits, rows.means)
    scaled, eye, nothing = diags_array(1 / scale) @ matrix, diags_array(np.ones(count)), csc_array((count, count))
    price = np.where(np.arange(count) < rows.num_budgets, 1.0, 1e3)
    size = np.concatenate([polytope.weight[order], np.zeros(2 * count)])[None]
    least_size = polytope.capacity if polytope.size is None or not whole else 0.0
    result = milp(
        np.concatenate([np.zeros(num_samples), price, price]),
        integrality=np.concatenate([np.full(num_samples, int(whole)), np.zeros(2 * count)]),
        bounds=Bounds(
            np.concatenate([polytope.forced_in[order].astype(float), np.zeros(2 * count)]),
            np.concatenate([1.0 - polytope.forced_out[order], np.full(2 * count, np.inf)]),
        ),
        constraints=[
            LinearConstraint(hstack([scaled, -eye, nothing]), -np.inf, rows.upper / scale),
            LinearConstraint(hstack([scaled, nothing, eye]), rows.lower / scale, np.inf),
            LinearConstraint(size, least_size, polytope.capacity),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert result.x is not None, result.message  # every row gives way, and size was looked at before
    weights = np.round(result.x[:num_samples]) if whole else result.x[:num_samples]
    found = []
    for k, (name, used) in enumerate(zip(rows.names, matrix @ weights, strict=True)):
        is_budget = k < rows.num_budgets
        if used > rows.upper[k] + 1e-7 * scale[k]:  # HiGHS's tolerance
            limit = name if is_budget else f"the ceiling of {name}"
            found.append(Relaxation(limit, float(rows.upper[k]), float(used)))
        if used < rows.lower[k] - 1e-7 * scale[k]:
            found.append(Relaxation(f"the floor of {name}", float(rows.lower[k]), float(used)))
    return found
