"""The selection problem.

N samples, K selected, R sketch size, m bands of the spectrum.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from direct_anneal.config.names import Objective as Objective
from direct_anneal.config.names import Unit as Unit
from direct_anneal.solver.matrix import FeatureMatrix

_FORCED: tuple[Literal["forced_in"], Literal["forced_out"]] = ("forced_in", "forced_out")


@dataclass(frozen=True)
class Quota:
    """Bounds on the amount of each group in a selection: floors and ceilings.

    Args:
        groups: shape (N,), a label for each sample (its domain, its language, ...).
        floors, ceilings: label → amount, in units of `unit`; groups that are not named are free. A floor may name a
            group that no sample has only if it asks for nothing.
        unit: what is counted, "samples" or "tokens".
        kind: what a label is called in messages.
    """

    groups: ArrayLike
    floors: Mapping[Any, float] = field(default_factory=dict)
    ceilings: Mapping[Any, float] = field(default_factory=dict)
    unit: Unit = "samples"
    kind: str = "group"

    def __post_init__(self) -> None:
        if self.unit not in ("samples", "tokens"):
            raise ValueError(f'unit must be "samples" or "tokens", got {self.unit!r}')
        for side, amounts in (("floor", self.floors), ("ceiling", self.ceilings)):
            for label, amount in amounts.items():
                if not 0 <= amount < np.inf:
                    raise ValueError(f"the {side} of {self.kind} {label} must be finite and ≥ 0, got {amount}")

    def named(self) -> list[Hashable]:
        """Return every label with a floor or a ceiling, sorted as text."""
        return sorted({*self.floors, *self.ceilings}, key=str)


@dataclass(frozen=True, eq=False)
class Linear:
    """A limit on a sum over the selection: floor ≤ Σ_i v_i w_i ≤ ceiling. Values may have either sign.

    Args:
        values: v, shape (N,), finite.
        floor, ceiling: in units of the values; infinite where there is none.
        name: of the sum, in messages.
    """

    values: NDArray[np.floating]
    floor: float = -np.inf
    ceiling: float = np.inf
    name: str = "the sum"

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 1 or not np.all(np.isfinite(self.values)):
            raise ValueError(f"values of {self.name} must be finite and of shape (N,)")
        if np.isnan(self.floor) or np.isnan(self.ceiling):
            raise ValueError(f"the limits of {self.name} must be numbers, got {self.floor} and {self.ceiling}")


@dataclass(frozen=True)
class SelectionProblem:
    """Choose samples that go far together, under budgets of stiff cost and quotas.

        energy:   maximise ‖Σ_i w_i x_i‖²            (arXiv:2605.31175, eq. of the selection problem)
        descent:  maximise Σ_i w_i ⟨x_i, target⟩     (ours: knows the sign of progress, and is linear)
        matching: maximise ‖start − target‖² − ‖Σ_i w_i x_i − target‖²     (ours: descent, and what the step costs)
        subject to 0 ≤ w_i ≤ 1,  Σ_i a_i w_i ≤ budget (for each band),  floors and ceilings,  w_i fixed where forced,
        and Σ_i w_i = K  or  Σ_i n_i w_i = token_budget;  floor ≤ Σ_i v_i w_i ≤ ceiling for each of `linear`.

    Args:
        features: X, shape (N, R): what each sample contributes (flat gradients for `energy`).
        stiff_cost: a ≥ 0, shape (N,), or (N, m): one for each band of the spectrum.
        num_selected: K. Exactly one of this and `token_budget` is given.
        budget: τ, absolute, in units of `stiff_cost`; shape (m,) where there are bands.
        objective: "energy", "descent" or "matching".
        target: shape (R,), the direction of progress, or what Σ_i w_i x_i should be; `energy` has none.
        start: shape (R,), what matching counts from: above 0 is nearer to the target than that; 0 where left out.
        num_tokens: n ≥ 1, shape (N,); counts with `token_budget` and quotas in tokens only.
        token_budget: B. The selection holds at most B tokens, and nothing that is left would still fit.
        tie_order: shape (N,), a rank for each sample; among equals the lower one is chosen. Position where left
            out. Give the rank of the sample's id to make selections independent of the order of the pool.
        quotas: one `Quota`, or several.
        linear: limits on sums of any sign.
        forced_in, forced_out: samples that must, or must not, be chosen: a mask (N,) or positions.

    Raises:
        ValueError: shapes disagree, numbers are not finite, the size asked for is not in 1..N, or a sample is forced
            both in and out. Whether the constraints can be met together is found out by `solve`.
    """

    features: FeatureMatrix | NDArray[np.floating]
    stiff_cost: NDArray[np.floating]
    num_selected: int | None = None
    budget: float | NDArray[np.floating] = np.inf
    objective: Objective = "energy"
    target: NDArray[np.floating] | None = None
    start: NDArray[np.floating] | None = None
    num_tokens: NDArray[np.integer] | None = None
    token_budget: int | None = None
    tie_order: NDArray[np.integer] | None = None
    quotas: Quota | Sequence[Quota] = ()
    linear: Sequence[Linear] = ()
    forced_in: ArrayLike | None = None
    forced_out: ArrayLike | None = None

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2:
            raise ValueError(f"features must have shape (N, R), got {self.features.shape}")
        num_samples, sketch_size = self.features.shape
        self._check_budget(num_samples)
        if (self.num_selected is None) == (self.token_budget is None):
            raise ValueError("give exactly one of num_selected and token_budget")
        if self.num_selected is not None and not 1 <= self.num_selected <= num_samples:
            raise ValueError(
                f"num_selected must be in 1..{num_samples}, the number of samples, got {self.num_selected}"
            )
        counted = self.token_budget is not None or any(quota.unit == "tokens" for quota in self.all_quotas)
        if counted and (
            self.num_tokens is None or np.shape(self.num_tokens) != (num_samples,) or np.any(self.num_tokens < 1)
        ):
            asks = "a quota in tokens" if self.token_budget is None else "token_budget"
            raise ValueError(f"{asks} needs num_tokens ≥ 1 of shape ({num_samples},)")
        if self.token_budget is not None:
            assert self.num_tokens is not None
            if self.token_budget < np.min(self.num_tokens):
                raise ValueError(f"token_budget {self.token_budget} is less than the shortest sample")
            if self.token_budget > np.sum(self.num_tokens):
                raise ValueError(f"token_budget {self.token_budget} is more than the samples have together")
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {self.objective!r}")
        if (self.objective == "energy") != (self.target is None):
            raise ValueError("the objectives descent and matching need a target, and energy takes none")
        if self.target is not None and np.shape(self.target) != (sketch_size,):
            raise ValueError(f"target has shape {np.shape(self.target)}, features R={sketch_size}")
        for name, given in (("target", self.target), ("start", self.start)):
            if given is not None and not np.all(np.isfinite(given)):
                raise ValueError(f"{name} must be finite")
        if self.start is not None and (self.objective != "matching" or np.shape(self.start) != (sketch_size,)):
            raise ValueError(f"start is of matching, and has shape {np.shape(self.start)}, features R={sketch_size}")
        if self.tie_order is not None and (
            np.shape(self.tie_order) != (num_samples,) or not np.all(np.isfinite(self.tie_order))
        ):
            raise ValueError(f"tie_order must be finite and of shape ({num_samples},)")
        for quota in self.all_quotas:
            if np.shape(quota.groups) != (num_samples,):
                raise ValueError(f"a quota's groups have shape {np.shape(quota.groups)}, features {num_samples} rows")
        for limit in self.linear:
            if np.shape(limit.values) != (num_samples,):
                raise ValueError(
                    f"values of {limit.name} have shape {np.shape(limit.values)}, features {num_samples} rows"
                )
        both = np.flatnonzero(self.mask("forced_in") & self.mask("forced_out"))
        if len(both):
            raise ValueError(f"sample {both[0]} is forced both in and out, as are {len(both) - 1} others: take a side")

    def _check_budget(self, num_samples: int) -> None:
        cost, budget = np.asarray(self.stiff_cost), np.asarray(self.budget)
        if cost.ndim not in (1, 2) or len(cost) != num_samples or cost.shape[1:] != budget.shape:
            raise ValueError(
                f"stiff_cost has shape {cost.shape}, features {num_samples} rows and budget shape {budget.shape}: one "
                "cost per sample for a budget, or one per sample and band for a budget per band"
            )
        if not np.all(np.isfinite(cost)) or np.any(cost < 0):
            raise ValueError("stiff_cost must be finite and ≥ 0: leave out samples whose gradient is not finite")
        if not np.all(budget >= 0):
            raise ValueError(f"budget must be ≥ 0, got {self.budget}")

    def __repr__(self) -> str:
        num_samples, sketch_size = self.features.shape
        size = f"{self.num_selected} of {num_samples} samples"
        if self.num_selected is None:
            size = f"{self.token_budget} tokens of {num_samples} samples"
        budget = " ".join(f"{one:.6g}" for one in np.atleast_1d(self.budget))
        beside = [f"{len(self.all_quotas)} quotas"] if self.all_quotas else []
        beside += [f"{len(self.linear)} linear limits"] if self.linear else []
        beside += [f"{self.mask(name).sum()} {name}" for name in _FORCED if self.mask(name).any()]
        return f"SelectionProblem({', '.join([self.objective, size, f'R={sketch_size}', f'budget {budget}', *beside])})"

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Size of each sample, shape (N,): its tokens, or 1."""
        tokens = np.ones(self.features.shape[0]) if self.token_budget is None else self.num_tokens
        return np.asarray(tokens, dtype=np.float64)

    @property
    def all_quotas(self) -> tuple[Quota, ...]:
        """The quotas, however many."""
        return (self.quotas,) if isinstance(self.quotas, Quota) else tuple(self.quotas)

    def mask(self, name: Literal["forced_in", "forced_out"]) -> NDArray[np.bool_]:
        """Convert a mask or positions to forced samples, shape (N,) bool.

        Raises:
            ValueError: it is neither.
        """
        num_samples = self.features.shape[0]
        given = getattr(self, name)
        given = np.zeros(0, dtype=np.intp) if given is None else np.asarray(given)
        if given.dtype == np.bool_ and given.shape == (num_samples,):
            return np.asarray(given)
        mask = np.zeros(num_samples, dtype=np.bool_)
        if given.size:
            if given.ndim != 1 or given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= num_samples:
                raise ValueError(f"{name} must be a mask of shape ({num_samples},), or positions below {num_samples}")
            mask[given] = True
        return mask
