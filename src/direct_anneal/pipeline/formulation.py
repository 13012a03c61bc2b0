"""From gradients and a spectrum to a selection problem: where the objectives' formulas stand.

N samples of the pool, M of the validation set, R sketch size, λ, V the spectrum, τ the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.curvature import CrossFit, Spectrum
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.pipeline.constraints import constraints
from direct_anneal.selection import (
    FeatureMatrix,
    InfeasibleBudgetError,
    InfeasibleError,
    Objective,
    Selection,
    SelectionProblem,
    solve,
)

RELAXED_MARGIN = 1.1  # at the least feasible budget itself nothing is left to choose
DAMPING = 0.1  # δ in units of λ₁


@dataclass(frozen=True)
class Formulation:
    """A selection problem, and the unit that budgets are ratios of: τ = ratio · unit.

    Attributes:
        problem: as `solve` takes it.
        unit: mean stiff cost of the reference times the expected number of selected samples.
    """

    problem: SelectionProblem
    unit: float

    def ratio(self, budget: float) -> float:
        """An absolute budget as a ratio."""
        return budget / self.unit if self.unit > 0 else 0.0


def formulate(
    objective: Objective,
    config: SelectConfig,
    pool: SketchedGradients,
    validation: NDArray[np.float64],
    spectrum: Spectrum,
    crossed: CrossFit | None,
) -> Formulation:
    """The problem of one objective.

        energy:   x_i = F z_i, a_i = Σ_{j≤s} λ_j (v_jᵀ z_i)²                           (arXiv:2605.31175)
        descent:  x_i = z_i / ‖z_i‖, a_i of x_i, target (H̃ + δ)⁻¹ z̄, δ = 0.1 λ₁     (ours, departure 5)

    Args:
        pool: N gradients.
        validation: Z of the validation set, shape (M, R).
        crossed: held-out costs of the validation set, where it is large enough to have them.

    Raises:
        InputError: the pool is smaller than what is asked of it, or the budget's reference is not to be had.
    """
    raw = objective == "energy"
    squared = np.square(pool.norms) if raw else np.ones(len(pool))
    cost = np.concatenate([spectrum.stiff_cost(block) for block in pool.units]) * squared
    num_tokens = pool.samples["num_tokens"].to_numpy()
    num_selected, token_budget = config.size_of(num_tokens)
    expected = num_selected if token_budget is None else token_budget / float(num_tokens.mean())
    assert expected is not None
    if config.budget_reference == "pool":
        reference = cost
    elif crossed is not None:
        lengths = np.square(np.linalg.norm(validation, axis=1))
        reference = crossed.held_out if raw else crossed.held_out / np.where(lengths > 0, lengths, 1.0)
    else:
        raise InputError(
            f"--budget-reference validation needs at least 4 validation samples to hold some out, got "
            f"{len(validation)}: add samples, or use --budget-reference pool"
        )
    unit = float(reference.mean()) * expected
    target = None
    if not raw:
        damping = DAMPING * float(spectrum.eigenvalues[0])
        target = spectrum.apply(lambda curvature: 1 / (curvature + damping), validation.mean(0))
    problem = SelectionProblem(
        features=FeatureMatrix(pool.units, scale=pool.norms if raw else None, removed=spectrum.stiff if raw else None),
        stiff_cost=cost,
        num_selected=num_selected,
        budget=config.budget_ratio * unit,
        objective=objective,
        target=target,
        num_tokens=num_tokens,
        token_budget=token_budget,
        **constraints(config, pool.samples, num_selected, token_budget),
        tie_order=pc.rank(pool.samples["id"], tiebreaker="first").to_numpy(),
    )
    return Formulation(problem, unit)


def relaxed(formulation: Formulation, least_feasible: float) -> Formulation:
    """The same problem under 1.1 times the least feasible budget."""
    return replace(formulation, problem=replace(formulation.problem, budget=RELAXED_MARGIN * least_feasible))


def solve_within(formulation: Formulation, config: SelectConfig) -> tuple[Formulation, Selection, float | None]:
    """Solve, or say what stands against it.

    Returns:
        the problem solved, its selection, and the least feasible ratio where the budget had to be relaxed.

    Raises:
        InputError: the budget is infeasible, and `relax_budget` is off; or floors, ceilings and forced documents are.
    """
    try:
        return formulation, _solve(formulation.problem), None
    except InfeasibleBudgetError as error:
        least = formulation.ratio(error.least_feasible)
        if not config.relax_budget:
            raise InputError(
                f"the stiff budget must allow the size asked for, but --budget-ratio {config.budget_ratio:g} (of the "
                f"{config.budget_reference}'s mean stiff cost) is below the least feasible ratio {least:.4g}: pass "
                f"--budget-ratio {_rounded_up(least)} or more, select less, or pass --relax-budget"
            ) from error
        wider = relaxed(formulation, error.least_feasible)
        return wider, _solve(wider.problem), least


def _solve(problem: SelectionProblem) -> Selection:
    """`solve`, where all but an infeasible budget is the user's to mend and not ours to relax."""
    try:
        return solve(problem)
    except InfeasibleBudgetError:
        raise
    except InfeasibleError as error:
        raise InputError(f"the selection asked for must be possible, but {error}") from error


def solve_at_any_budget(formulation: Formulation, config: SelectConfig) -> tuple[Formulation, Selection, float | None]:
    """`solve_within` for comparison only: an infeasible budget is relaxed, whatever was asked for."""
    return solve_within(formulation, replace(config, relax_budget=True))


def _rounded_up(ratio: float) -> str:
    """Three digits, never below: what is suggested must work."""
    unit = 10.0 ** (np.floor(np.log10(ratio)) - 2)
    return f"{np.ceil(ratio / unit + 1e-9) * unit:.6g}"
