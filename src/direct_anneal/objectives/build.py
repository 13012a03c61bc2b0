"""From gradients and a spectrum to a selection problem: where the objectives' formulas stand.

N samples of the pool, M of the validation set, R sketch size, m bands, λ, v the spectrum, τ the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import scipy.linalg
from numpy.typing import NDArray

from direct_anneal.config.objective import Member
from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import Estimate, Spectrum, cross_fit
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.objectives.constraints import constraints
from direct_anneal.solver import (
    Block,
    FeatureMatrix,
    InfeasibleBudgetError,
    InfeasibleError,
    Joined,
    Map,
    Objective,
    Selection,
    SelectionProblem,
    solve,
)

_COST_BLOCK_BYTES = 8 << 20  # of float64 rows: what BLAS does well with
RELAXED_MARGIN = 1.1  # at the least feasible budget itself nothing is left to choose

Float = NDArray[np.float64]
Blocks = Sequence[Block]


@dataclass(frozen=True)
class Formulation:
    """A selection problem, and the units that budgets are ratios of: τ = ratio · unit.

    Attributes:
        problem: as `solve` takes it.
        units: shape (m,), of each band: mean stiff cost of the reference times the expected number of selected samples.
        known: of matching, how much of what sets the validation set's mean apart from the pool's is no chance.
    """

    problem: SelectionProblem
    units: Float
    known: float | None = None

    def budget(self, ratio: float) -> float | Float:
        """Absolute budgets of a ratio, as a problem takes them."""
        return _budget(ratio, self.units)

    def ratio(self, budget: float | Float) -> float:
        """Absolute budgets as a ratio, infinite where there is none; of several bands the largest."""
        ratios = np.divide(budget, self.units, out=np.zeros_like(self.units), where=self.units > 0)
        return float(ratios.max())


def formulate(
    objective: Objective,
    config: SelectConfig,
    pool: SketchedGradients,
    validation: Float,
    estimate: Estimate,
    mapper: Map = map,
    ngrams: Float | None = None,
) -> Formulation:
    """The problem that documents and their configuration make, for one objective.

    What `config` leaves to its own objective, the other has its defaults of.

    Args:
        pool: N gradients.
        validation: Z of the validation set, shape (M, R).
        estimate: spectra, split at the elbow.
        mapper: carries out what takes all rows, as `FeatureMatrix` has it.
        ngrams: of the validation set, shape (M, L), in the order of Z.

    Raises:
        InputError: the pool is smaller than what is asked of it, or as for `formulate_arrays`.
    """
    num_tokens = pool.samples["num_tokens"].to_numpy()
    num_selected, token_budget = config.size_of(num_tokens)
    expected = num_selected if token_budget is None else token_budget / float(num_tokens.mean())
    assert expected is not None
    member = config.member(objective)
    # Training sees each token once, and raw gradients of summed losses count them already.
    weighed = token_budget is not None and not (config.reduction == "sum" and member.gradients == "raw")
    return formulate_arrays(
        member,
        pool.units,
        pool.norms,
        validation,
        estimate,
        expected,
        num_tokens / num_tokens.mean() if weighed else None,
        mapper,
        None if pool.ngrams is None or ngrams is None else (pool.ngrams, ngrams),
        num_selected=num_selected,
        num_tokens=num_tokens,
        token_budget=token_budget,
        **constraints(config, pool.samples, num_selected, token_budget),
        tie_order=pc.rank(pool.samples["id"], tiebreaker="first").to_numpy(),
    )


def formulate_arrays(
    member: Member,
    units: Blocks,
    norms: Float,
    validation: Float,
    estimate: Estimate,
    expected: float,
    token_weights: Float | None = None,
    mapper: Map = map,
    ngrams: tuple[Blocks, Float] | None = None,
    **size_and_constraints: Any,
) -> Formulation:
    """The problem of one objective: the family that docs/departures.md derives, in one place.

        energy:   maximise ‖Σ_i w_i f(H̃) x_i‖²                  descent:  maximise Σ_i w_i ⟨x_i, f(H̃) z̄⟩
        matching: minimise ⟨d, f(H̃) d⟩,  d = Σ_i w_i x_i − K (x̄ + scale · known · (z̄ − x̄)), counted from
            that of K x̄; K the expected number selected, known as in `_known_share`
        under     Σ_i w_i A_ib ≤ τ_b for each band b,  A_ib = Σ_{j in b} λ_j (v_jᵀ (x_i − c))²

        gradients: x_i = z_i ("raw"), or z_i / ‖z_i‖ ("unit"); by tokens, times n_i / n̄: each of its tokens counts
        n-grams:   x_i with its unit row of n-grams beside it, (x_i, β y_i) / √(1 + β²), in all but stiff costs
        filter:    f(λ_j) = 1 ("none"); 0 for j ≤ s and 1 beyond ("flat"); 1 / (λ_j + δ), δ = damping · λ₁ ("newton")
        filter curvature, of newton: H̃ is the validation set's ("validation"), (1/N) Σ_pool x xᵀ ("pool"), or the mean
            of that and of (1/M) Σ_val x xᵀ ("both")
        noise:     c = 0 ("raw"), or the mean of x over the pool; over the validation set for its own costs ("centred")
        budget:    τ_b = ratio · mean of the reference's A_b · expected number selected

    The paper's is energy, raw, flat, raw with one band.

    Args:
        units: rows of unit norm, or zero, in blocks of shape (n_b, R); N in all.
        norms: ‖z‖, shape (N,).
        validation: Z of the validation set, shape (M, R).
        estimate: spectra, split at the elbow.
        expected: how many samples are selected, as far as that is known.
        token_weights: n / n̄, shape (N,), the lengths of samples in units of their mean, where the size is in tokens and
            z is of a sample's mean loss; None: every sample counts alike.
        mapper: carries out what takes all rows, as `FeatureMatrix` has it.
        ngrams: of pool and validation set, n and M rows of unit norm, where β is above 0.
        size_and_constraints: further arguments of `SelectionProblem`.

    Raises:
        InputError: there are fewer stiff directions than bands, or the budget's reference is not to be had.
    """
    spectrum = estimate.whole
    if member.bands > spectrum.num_stiff:
        raise InputError(
            f"--bands must leave a stiff direction to each, but {member.bands} are asked for and {spectrum.num_stiff} "
            "directions are stiff: ask for fewer, or raise --elbow"
        )
    scale = None if member.gradients == "unit" else norms
    counted = FeatureMatrix(units, scale=scale, mapper=mapper)
    cost = _band_costs(spectrum, counted, member)
    if token_weights is not None:
        cost = cost * token_weights[:, None]
        scale = token_weights if scale is None else scale * token_weights
    reference = cost if member.budget_reference == "pool" else _held_out(validation, estimate, member)
    budget_units = reference.mean(axis=0) * expected
    target = removed = mapped = None
    x = _counted(validation, member)
    if member.ngram_weight:
        assert ngrams is not None, "n-grams are weighed, but there are none"
        units, x = _with_ngrams(member.ngram_weight, (units, x), ngrams)
        counted = FeatureMatrix(units, mapper=mapper)  # unit rows
    if member.objective == "descent":
        target = _target(member, spectrum, counted, x)
    elif member.filter == "flat":
        removed = spectrum.stiff
    if member.objective == "matching" and member.filter == "newton":
        mapped = _root(member, spectrum, counted, x)
    features = FeatureMatrix(units, scale=scale, removed=removed, mapped=mapped, mapper=mapper)
    known = start = None
    if member.objective == "matching":
        assert member.target_scale is not None
        seen = x if removed is None else spectrum.flat(x)
        seen = seen if mapped is None else seen @ mapped
        mean = features.weighted_sum(np.ones(len(norms))) / len(norms)
        known = _known_share(mean, features.squared_norms(), seen)
        start = expected * mean
        target = start + expected * member.target_scale * known * (seen.mean(axis=0) - mean)
    problem = SelectionProblem(
        features=features,
        stiff_cost=cost[:, 0] if member.bands == 1 else cost,
        budget=_budget(member.allowance, budget_units),
        objective=member.objective,
        target=target,
        start=start,
        **size_and_constraints,
    )
    return Formulation(problem, budget_units, known)


def _known_share(mean: Float, squared_norms: Float, validation: Float) -> float:
    """How much of the way from the pool's mean to the validation set's is no chance of who is in them, in [0, 1].

    As the positive part of James and Stein's estimator has it: 1 − (tr C_val / M + tr C_pool / N) / ‖z̄ − x̄‖².

    Args:
        mean: x̄, shape (R,).
        squared_norms: ‖x‖² of the pool, shape (N,).
        validation: x of the validation set, shape (M, R).
    """
    aim, count = validation.mean(axis=0), len(validation)
    apart = float(np.square(aim - mean).sum())
    chance = float(squared_norms.mean() - mean @ mean) / len(squared_norms)
    if count > 1:  # of a single one nobody knows
        chance += float(np.square(validation - aim).sum()) / (count - 1) / count
    return max(0.0, 1.0 - chance / apart) if apart > 0 else 0.0


def _target(member: Member, spectrum: Spectrum, pool: FeatureMatrix, x: Float) -> Float:
    """f(H̃) z̄, shape (R,).

    Args:
        pool: its N gradients as they are counted.
        x: the validation set's as they are counted, shape (M, R).
    """
    mean: Float = x.mean(axis=0)
    if member.filter == "none":
        return mean
    if member.filter == "flat":
        return np.asarray(spectrum.flat(mean[None])[0])
    assert member.damping is not None
    if member.filter_curvature == "validation":
        delta = member.damping * float(spectrum.eigenvalues[0])
        return spectrum.apply(lambda curvature: 1 / (curvature + delta), mean)
    solved: Float = scipy.linalg.solve(_damped_curvature(member, pool, x), mean, assume_a="pos")
    return solved


def _root(member: Member, spectrum: Spectrum, pool: FeatureMatrix, x: Float) -> Float:
    """W with W Wᵀ = (H̃ + δ)⁻¹, shape (R, R); arguments as for `_target`."""
    size = pool.shape[1]
    if member.filter_curvature == "validation":
        assert member.damping is not None
        delta = member.damping * float(spectrum.eigenvalues[0])
        return spectrum.apply(lambda curvature: 1 / np.sqrt(curvature + delta), np.eye(size))
    lower = scipy.linalg.cholesky(_damped_curvature(member, pool, x), lower=True)
    root: Float = scipy.linalg.solve_triangular(lower, np.eye(size), lower=True)
    return root.T


def _damped_curvature(member: Member, pool: FeatureMatrix, x: Float) -> Float:
    """H̃ + δ of the pool, or of both, shape (R, R), positive definite; arguments as for `_target`."""
    num_samples, size = pool.shape
    moment = pool.gram() / num_samples
    if member.filter_curvature == "both":
        moment = (moment + x.T @ x / len(x)) / 2
    largest = float(scipy.linalg.eigvalsh(moment, subset_by_index=[size - 1, size - 1])[0])
    assert member.damping is not None
    moment[np.diag_indices(size)] += member.damping * largest if largest > 0 else 1.0  # 0: no gradient at all
    return moment


def _with_ngrams(weight: float, gradients: tuple[Blocks, Float], ngrams: tuple[Blocks, Float]) -> tuple[Blocks, Float]:
    """Rows of the pool and of the validation set, with n-grams beside gradients: of length 1 as both are."""
    length = float(np.hypot(1.0, weight))
    factors = (1 / length, weight / length)
    pool = [Joined(left, right, factors) for left, right in zip(gradients[0], ngrams[0], strict=True)]
    return pool, np.hstack([factor * rows for factor, rows in zip(factors, (gradients[1], ngrams[1]), strict=True)])


def _counted(validation: Float, member: Member) -> Float:
    """x of the validation set: its gradients, or their directions."""
    if member.gradients == "raw":
        return validation
    lengths = np.linalg.norm(validation, axis=1, keepdims=True)
    return np.asarray(validation / np.where(lengths > 0, lengths, 1.0))


def _band_costs(spectrum: Spectrum, features: FeatureMatrix, member: Member) -> Float:
    """A of the pool, shape (N, m), block by block."""
    count, size = features.shape
    centre = features.weighted_sum(np.ones(count)) / count if member.noise == "centred" else np.zeros(size)
    return features.of_rows(partial(_costs_around, centre, spectrum, member.bands), _COST_BLOCK_BYTES)


def _costs_around(centre: Float, spectrum: Spectrum, num_bands: int, rows: Float) -> Float:
    return spectrum.band_costs(rows - centre, num_bands)


def _held_out(validation: Float, estimate: Estimate, member: Member) -> Float:
    """A of the validation set, shape (M, m), each sample's under the spectrum of the other half."""
    if estimate.halves is None:
        raise InputError(
            f"--budget-reference validation needs at least 4 validation samples to hold some out, got "
            f"{len(validation)}: add samples, or use --budget-reference pool"
        )
    x = _counted(validation, member)
    if member.noise == "centred":
        x = x - x.mean(axis=0)
    if (fewest := min(half.num_stiff for half in estimate.halves)) < member.bands:
        raise InputError(
            f"--bands must leave a stiff direction to each, but half the validation set has {fewest}: ask for fewer, "
            "raise --elbow, or use --budget-reference pool"
        )
    return cross_fit(x, estimate.halves, member.bands).held_out


def _budget(ratio: float, units: Float) -> float | Float:
    budgets = ratio * units if np.isfinite(ratio) else np.full_like(units, np.inf)
    return float(budgets[0]) if len(units) == 1 else budgets


def relaxed(formulation: Formulation, least_feasible: float | Float) -> Formulation:
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
                f"the stiff budget must allow the size asked for, but --budget-ratio {config.budget_ratio} (of the "
                f"{config.budget_reference}'s mean stiff cost) is below the least feasible ratio {least:.4g}: pass "
                f"--budget-ratio {rounded_up(least)} or more, select less, or pass --relax-budget"
            ) from error
        wider = relaxed(formulation, error.least_feasible)
        try:
            return wider, _solve(wider.problem), least
        except InfeasibleBudgetError as again:  # fractions of documents fit, whole ones do not
            raise InputError(
                f"a selection of whole documents must fit the stiff budget, but none was found at ratio "
                f"{RELAXED_MARGIN * least:.4g}, {RELAXED_MARGIN:g} times what fractions need: pass a larger "
                "--budget-ratio, or select less"
            ) from again


def _solve(problem: SelectionProblem) -> Selection:
    """`solve`, where all but an infeasible budget is the user's to mend and not ours to relax."""
    try:
        return solve(problem)
    except InfeasibleBudgetError:
        raise
    except InfeasibleError as error:
        raise InputError(f"the selection asked for must be possible, but {error}") from error


def solve_at_any_budget(
    formulation: Formulation, config: SelectConfig
) -> tuple[Formulation, Selection, float | None] | None:
    """`solve_within` for comparison only: an infeasible budget is relaxed, whatever was asked for.

    Returns:
        None where there is no selection even so, which is no reason to withhold the one that was asked for.
    """
    try:
        return solve_within(formulation, replace(config, relax_budget=True))
    except InputError:
        return None


def rounded_up(ratio: float) -> str:
    """Three digits, never below: what is suggested must work."""
    unit = 10.0 ** (np.floor(np.log10(ratio)) - 2)
    return f"{np.ceil(ratio / unit + 1e-9) * unit:.6g}"
