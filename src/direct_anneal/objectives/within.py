"""Solve within the budget, or say what stands against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from direct_anneal.errors import InputError, option
from direct_anneal.objectives.base import SelectionObjective
from direct_anneal.objectives.inputs import Built
from direct_anneal.solver import InfeasibleBudgetError, InfeasibleError, Selection

RELAXED_MARGIN = 1.1  # at the least feasible budget itself nothing is left to choose


def solve_within(
    objective: SelectionObjective, built: Built, *, relax: bool | None
) -> tuple[Built, Selection, float | None]:
    """Solve a problem.

    Args:
        objective: whose problem it is, with its options.
        relax: raise an infeasible budget to 1.1 times the least feasible one; None where that is not on offer.

    Returns:
        the problem solved, its selection, and the least feasible ratio where the budget had to be relaxed.

    Raises:
        InputError: the budget is infeasible, and `relax` is off; or floors, ceilings and forced documents are.
    """
    try:
        return built, _solve(objective, built), None
    except InfeasibleBudgetError as error:
        least = built.ratio(error.least_feasible)
        if not relax:
            asked, reference = (getattr(objective, name, None) for name in ("budget_ratio", "budget_reference"))
            raise InputError(
                field="budget_ratio",
                must="allow the size asked for",
                got=f"but {asked} (of the {reference}'s mean stiff cost) is below the least feasible ratio {least:.4g}",
                do=f"pass {option('budget_ratio')} {rounded_up(least)} or more, "
                + ("or select less" if relax is None else f"select less, or pass {option('relax_budget')}"),
            ) from error
        wider = replace(built, problem=replace(built.problem, budget=RELAXED_MARGIN * error.least_feasible))
        try:
            return wider, _solve(objective, wider), least
        except InfeasibleBudgetError as again:  # fractions of documents fit, whole ones do not
            raise InputError(
                subject="a selection of whole documents",
                must="fit the stiff budget",
                got=f"but none was found at ratio {RELAXED_MARGIN * least:.4g}, {RELAXED_MARGIN:g} times what "
                "fractions need",
                do=f"pass a larger {option('budget_ratio')}, or select less",
            ) from again


def _solve(objective: SelectionObjective, built: Built) -> Selection:
    """Solve; an infeasible budget is ours to relax, all else the user's to mend."""
    try:
        return objective.solve(built.problem)
    except InfeasibleBudgetError:
        raise
    except InfeasibleError as error:
        raise InputError(f"the selection asked for must be possible, but {error}") from error


def rounded_up(ratio: float) -> str:
    """Round to three digits, never below: what is suggested must work."""
    unit = 10.0 ** (np.floor(np.log10(ratio)) - 2)
    return f"{np.ceil(ratio / unit + 1e-9) * unit:.6g}"
