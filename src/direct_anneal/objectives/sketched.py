"""The part that objectives on sketched gradients share: how gradients count, what is stiff, and the budget.

    gradients: x_i = z_i ("raw"), or z_i / ‖z_i‖ ("unit"); by tokens, times n_i / n̄: each of its tokens counts
    n-grams:   x_i with its unit row of n-grams beside it, (x_i, β y_i) / √(1 + β²), in all but stiff costs
    filter:    f(λ_j) = 1 ("none"); 0 for j ≤ s and 1 beyond ("flat"); 1 / (λ_j + δ), δ = damping · λ₁ ("newton")
    filter curvature, of newton: H̃ is the validation set's ("validation"), (1/N) Σ_pool x xᵀ ("pool"), or the mean
        of that and of (1/M) Σ_val x xᵀ ("both")
    under      Σ_i w_i A_ib ≤ τ_b for each band b,  A_ib = Σ_{j in b} λ_j (v_jᵀ (x_i − c))²
    noise:     c = 0 ("raw"), or the mean of x over the pool; over the validation set for its own costs ("centred")
    budget:    τ_b = ratio · mean of the reference's A_b · expected number selected

N samples of the pool, M of the validation set, R sketch size, m bands, λ, v the spectrum, τ the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import eigsh

from direct_anneal.config.objective import (
    DAMPING,
    NGRAM_WEIGHT,
    Filter,
    FilterCurvature,
    Gradients,
    Noise,
    Ratio,
    Reference,
)
from direct_anneal.config.options import require
from direct_anneal.errors import InputError, option
from direct_anneal.objectives.base import SelectionObjective
from direct_anneal.objectives.inputs import Blocks, Built, Float, Inputs
from direct_anneal.solver import FeatureMatrix, Joined

if TYPE_CHECKING:
    from direct_anneal.curvature import Spectrum

_WHOLE_SIZE = 64  # rows of a matrix whose eigenvalues are found as a whole
_COST_BLOCK_BYTES = 8 << 20  # of float64 rows: what BLAS does well with


@dataclass(frozen=True)
class Counted:
    """Gradients as an objective counts them, and what they cost.

    Attributes:
        matrix: the pool's rows before they are weighed by tokens.
        scale: of the rows; by tokens, weighed by them.
        validation: x of the validation set, shape (M, R).
        cost: A of the pool, shape (N, m).
        units: of the budgets, shape (m,).
    """

    matrix: FeatureMatrix
    scale: Float | None
    validation: Float
    cost: Float
    units: Float


@dataclass(frozen=True, kw_only=True, repr=False)
class BudgetedObjective(SelectionObjective):
    """Options of every objective under a stiff budget, as in `SelectConfig`."""

    gradients: Gradients = "unit"
    noise: Noise = "raw"
    bands: int = 1
    budget_ratio: Ratio = "none"
    budget_reference: Reference = "pool"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.budget_ratio
        must = "a number above 0 and at most 1e6, or none"
        require(ratio == "none" or 0 < ratio <= 1e6, "budget_ratio", must, ratio)
        require(self.bands >= 1, "bands", "at least 1", self.bands)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradients"})

    @property
    def allowance(self) -> float:
        """The budget's ratio as a number: infinite where there is no budget."""
        return math.inf if self.budget_ratio == "none" else self.budget_ratio

    def counted(self, inputs: Inputs) -> Counted:
        """Return gradients and stiff costs as they count here.

        Raises:
            InputError: there are fewer stiff directions than bands, or the budget's reference is not to be had.
        """
        spectrum = inputs.estimate.whole
        if self.bands > spectrum.num_stiff:
            raise InputError(
                field="bands",
                must="leave a stiff direction to each",
                got=f"but {self.bands} are asked for and {spectrum.num_stiff} directions are stiff",
                do=f"ask for fewer, or raise {option('elbow')}",
            )
        pool, z = inputs.gradients("pool"), inputs.gradients("validation").dense
        scale = None if self.gradients == "unit" else pool.norms
        matrix = FeatureMatrix(pool.units, scale=scale, mapper=inputs.mapper)
        cost = _band_costs(spectrum, matrix, self.bands, self.noise)
        if not (inputs.summed and self.gradients == "raw") and (weights := inputs.token_weights) is not None:
            # Training sees each token once, and raw gradients of summed losses count them already.
            cost = cost * weights[:, None]
            scale = weights if scale is None else scale * weights
        reference = cost if self.budget_reference == "pool" else self._held_out(inputs, z)
        return Counted(matrix, scale, self._as_counted(z), cost, reference.mean(axis=0) * inputs.expected)

    def budgeted(self, inputs: Inputs, counted: Counted, features: FeatureMatrix | Float, **rest: Any) -> Built:
        """Return the problem under the stiff budget; `rest` as `Inputs.problem` takes it."""
        return inputs.problem(
            features,
            stiff_cost=counted.cost[:, 0] if self.bands == 1 else counted.cost,
            units=counted.units,
            ratio=self.allowance,
            **rest,
        )

    def _as_counted(self, z: Float) -> Float:
        """Return x of the validation set: its gradients, or their directions."""
        if self.gradients == "raw":
            return z
        lengths = np.linalg.norm(z, axis=1, keepdims=True)
        return np.asarray(z / np.where(lengths > 0, lengths, 1.0))

    def _held_out(self, inputs: Inputs, z: Float) -> Float:
        """Return a of the validation set, shape (M, m), each sample's under the spectrum of the other half."""
        from direct_anneal.curvature import cross_fit

        halves = inputs.estimate.halves
        if halves is None:
            raise InputError(
                field="budget_reference",
                must="be pool, or find at least 4 validation samples to hold some out",
                got=f"but there are {len(z)}",
                do=f"add samples, or use {option('budget_reference')} pool",
            )
        x = self._as_counted(z)
        if self.noise == "centred":
            x = x - x.mean(axis=0)
        if (fewest := min(half.num_stiff for half in halves)) < self.bands:
            raise InputError(
                field="bands",
                must="leave a stiff direction to each",
                got=f"but half the validation set has {fewest}",
                do=f"ask for fewer, raise {option('elbow')}, or use {option('budget_reference')} pool",
            )
        return cross_fit(x, halves, self.bands).held_out


@dataclass(frozen=True, kw_only=True, repr=False)
class SketchedObjective(BudgetedObjective):
    """Options of every objective on sketched gradients, as in `SelectConfig`."""

    filter: Filter = "newton"
    ngram_weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.ngram_weight
        require(weight is None or 0 <= weight <= 1e3, "ngram_weight", "at least 0 and at most 1000", weight)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gradients", "ngrams"} if self.ngram_weight != 0 else {"gradients"})

    def resolved(self, curvature: str) -> Self:  # noqa: ARG002
        """Fill in the options: n-grams have no norm of their own to be raw in, and no stiff directions."""
        side = getattr(self, "filter_curvature", None)
        fits = (self.gradients, self.filter) == ("unit", "newton") and side in ("pool", "both")
        weight = (NGRAM_WEIGHT if fits else 0.0) if self.ngram_weight is None else self.ngram_weight
        if weight > 0 and not fits:
            raise InputError(
                field="ngram_weight",
                must=f"be 0 but for {option('gradients')} unit and {option('filter')} newton with "
                f"{option('filter_curvature')} pool or both",
                got=f"got {weight} with {self.gradients}, {self.filter} and {side or 'no curvature'}",
                do="leave it out",
            )
        return replace(self, ngram_weight=weight)

    def counted(self, inputs: Inputs) -> Counted:
        """Return the same, with n-grams beside gradients in all but costs."""
        counted = super().counted(inputs)
        if not self.ngram_weight:
            return counted
        gradients = inputs.gradients("pool").units, counted.validation
        blocks, x = _with_ngrams(self.ngram_weight, gradients, inputs)
        return replace(counted, matrix=FeatureMatrix(blocks, mapper=inputs.mapper), validation=x)  # unit rows

    def removed(self, inputs: Inputs) -> Float | None:
        """Return the stiff directions, where they count nothing, shape (R, s)."""
        return inputs.estimate.whole.stiff if self.filter == "flat" else None


@dataclass(frozen=True, kw_only=True, repr=False)
class FilteredObjective(SketchedObjective):
    """Options of objectives that make progress along a direction, and what Newton's filter needs."""

    damping: float | None = None
    filter_curvature: FilterCurvature | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("damping", "filter_curvature"):
            if (value := getattr(self, field)) is not None and self.filter != "newton":
                must = f"be left out with {option('filter')} {self.filter}"
                raise InputError(field=field, must=must, got=value, do=f"it is of {option('filter')} newton")
        # Less would be lost in the rounding of H, which then need not be positive definite.
        fits = self.damping is None or 1e-10 <= self.damping <= 1e6
        require(fits, "damping", "above 0, at least 1e-10, and at most 1e6", self.damping)

    def resolved(self, curvature: str) -> Self:
        """Fill in the options: a curvature that is known of the validation set alone can filter by nothing else."""
        if self.filter != "newton":
            return super().resolved(curvature)
        empirical, side = curvature == "empirical-fisher", self.filter_curvature
        if not empirical and side not in (None, "validation"):
            raise InputError(
                field="filter_curvature",
                must=f"be validation with {option('curvature')} {curvature}, which is of the validation set alone",
                got=side,
                do=f"leave it out, or pass {option('curvature')} empirical-fisher",
            )
        damping = DAMPING if self.damping is None else self.damping
        settled = replace(self, damping=damping, filter_curvature=side or ("both" if empirical else "validation"))
        return SketchedObjective.resolved(settled, curvature)

    def delta(self, inputs: Inputs) -> float:
        """Return δ of the validation set's curvature."""
        assert self.damping is not None
        return self.damping * float(inputs.estimate.whole.eigenvalues[0])

    def damped_curvature(self, counted: Counted) -> Float:
        """Return H̃ + δ of the pool, or of both, shape (R, R), positive definite."""
        return self._damped(counted.matrix.gram() / counted.matrix.shape[0], counted.validation)

    def damped_root(self, counted: Counted) -> Float:
        """Return W, (R, n), with z W Wᵀ y = z (H̃ + δ)⁻¹ y for all rows z and y of the pool, and of the validation set.

        Where these are far fewer than R, n is their number: W = Q L⁻ᵀ, with Q a basis of theirs in which H̃ + δ = L Lᵀ.
        """
        matrix, x = counted.matrix, counted.validation
        (count, size), basis = matrix.shape, None
        if matrix.is_wide and 2 * (count + len(x)) <= size:
            rows = np.vstack([matrix.rows(np.arange(count)), x])
            basis, triangle = np.linalg.qr(rows.T)
            pool, validation = triangle.T[:count], triangle.T[count:]
            curvature = self._damped(pool.T @ pool / count, validation)
        else:
            curvature = self.damped_curvature(counted)
        lower = scipy.linalg.cholesky(curvature, lower=True)
        root: Float = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True).T
        return root if basis is None else basis @ root

    def _damped(self, moment: Float, x: Float) -> Float:
        """Return H̃ + δ, for second moments of the pool and rows of the validation set, in any basis."""
        if self.filter_curvature == "both":
            moment = (moment + x.T @ x / len(x)) / 2
        largest = largest_eigenvalue(moment)
        assert self.damping is not None
        moment[np.diag_indices(len(moment))] += self.damping * largest if largest > 0 else 1.0  # 0: no gradient at all
        return moment


def largest_eigenvalue(moment: Float) -> float:
    """Return λ₁ of a positive semidefinite matrix, shape (n, n), to rounding.

    Source: Lanczos iteration (ARPACK, through SciPy) from a fixed vector; small matrices whole. Cost: some dozens of
    products with a vector.
    """
    size = len(moment)
    if size <= _WHOLE_SIZE or not moment.any():
        return float(scipy.linalg.eigvalsh(moment, subset_by_index=[size - 1, size - 1])[0])
    start = np.random.default_rng(0).normal(size=size)
    return float(eigsh(moment, k=1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)[0])


def _with_ngrams(weight: float, gradients: tuple[Blocks, Float], inputs: Inputs) -> tuple[Blocks, Float]:
    """Return rows of the pool and of the validation set, with n-grams beside gradients: of length 1 as both are."""
    length = float(np.hypot(1.0, weight))
    factors = (1 / length, weight / length)
    pool = [Joined(left, right, factors) for left, right in zip(gradients[0], inputs.ngrams("pool"), strict=True)]
    words = np.concatenate([np.asarray(block[:]) for block in inputs.ngrams("validation")]).astype(np.float64)
    return pool, np.hstack([factor * rows for factor, rows in zip(factors, (gradients[1], words), strict=True)])


def _band_costs(spectrum: Spectrum, features: FeatureMatrix, num_bands: int, noise: Noise) -> Float:
    """Return a of the pool, shape (N, m), block by block."""
    count, size = features.shape
    centre = features.weighted_sum(np.ones(count)) / count if noise == "centred" else np.zeros(size)
    return features.of_rows(partial(_costs_around, centre, spectrum, num_bands), _COST_BLOCK_BYTES)


def _costs_around(centre: Float, spectrum: Spectrum, num_bands: int, rows: Float) -> Float:
    return spectrum.band_costs(rows - centre, num_bands)
