"""Everything that an objective may look at, loaded when it is asked for, and the problem that it makes of that.

N samples of the pool, M of the validation set, R sketch size, L n-gram features, m bands of the spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.objective import Likeness
from direct_anneal.errors import InputError, option
from direct_anneal.solver import Block, FeatureMatrix, Linear, Map, Objective, SelectionProblem

if TYPE_CHECKING:
    import pyarrow as pa

    from direct_anneal.curvature import Estimate
    from direct_anneal.path import PathLosses

Float = NDArray[np.float64]
Blocks = Sequence[Block]


@dataclass(frozen=True)
class Gradients:
    """Sketched gradients of one corpus, z = norm · unit.

    Attributes:
        units: rows of unit norm, or zero, in blocks of shape (n_b, R) that are read when asked for; n in all.
        norms: ‖z‖, shape (n,).
        values: Z itself, where it is at hand, shape (n, R).
    """

    units: Blocks
    norms: Float
    values: Float | None = None

    @cached_property
    def dense(self) -> Float:
        """Z, shape (n, R), float64, in memory."""
        if self.values is not None:
            return self.values
        rows = np.concatenate([np.asarray(block[:]) for block in self.units])
        return np.asarray(rows.astype(np.float64) * self.norms[:, None])


@dataclass(frozen=True)
class Built:
    """A selection problem, and what the run should know of it.

    Attributes:
        problem: as `solve` takes it.
        units: shape (m,): budgets are ratios of these, τ = ratio · unit: the reference's mean stiff cost times the
            expected number of selected samples. None where there are no stiff costs.
        facts: for the manifest's entry of the objective.
        remarks: for the user.
        columns: of selection.parquet, shape (N,) each, beside those that every selection has.
    """

    problem: SelectionProblem
    units: Float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def budget(self, ratio: float) -> float | Float:
        """Return absolute budgets of a ratio, as a problem takes them."""
        if self.units is None:
            return np.inf
        return budget_of(ratio, self.units)

    def ratio(self, budget: float | Float) -> float:
        """Return absolute budgets as a ratio, infinite where there is none; of several bands the largest."""
        if self.units is None:
            return np.inf
        ratios = np.divide(budget, self.units, out=np.zeros_like(self.units), where=self.units > 0)
        return float(ratios.max())


class Inputs:
    """The pool, the validation set, and the size and the constraints of the selection.

    Args:
        num_tokens: n, shape (N,), where it is known.
        num_selected, token_budget: the size; one of them.
        constraints: quotas, forced_in, forced_out and tie_order, as `SelectionProblem` takes them.
        loaders: by column ("gradients", "ngrams", "path", "samples"), what loads it for "pool" or "validation".
        estimate: gives the spectra, split where stiff ends.
        summed: gradients are of summed token losses, and not of mean ones.
        replay: share of all tokens that will be general text, the pool's own mixture, beside the selection; in [0, 1).
        likeness: gives the share of pairs in which words tell a validation document from one of the pool, as
            `run.likeness` does; None where there are no words, or too few documents.
        mapper: carries out what takes all rows, as `FeatureMatrix` has it.
    """

    def __init__(
        self,
        *,
        num_tokens: NDArray[np.int64] | None = None,
        num_selected: int | None = None,
        token_budget: int | None = None,
        constraints: Mapping[str, Any] | None = None,
        loaders: Mapping[str, Callable[[str], Any]],
        estimate: Callable[[], Estimate] | None = None,
        summed: bool = False,
        replay: float = 0.0,
        likeness: Likeness | None = None,
        mapper: Map = map,
    ) -> None:
        self.num_tokens = num_tokens
        self.num_selected = num_selected
        self.token_budget = token_budget
        self.summed = summed
        self.replay = replay
        self.mapper = mapper
        self._likeness = likeness
        self._constraints = dict(constraints or {})
        self._loaders = loaders
        self._estimate = estimate
        self._loaded: dict[tuple[str, str], Any] = {}

    @property
    def expected(self) -> float:
        """Expected number of selected samples."""
        if self.token_budget is None:
            assert self.num_selected is not None
            return self.num_selected
        assert self.num_tokens is not None
        return self.token_budget / float(self.num_tokens.mean())

    @property
    def token_weights(self) -> Float | None:
        """n / n̄, shape (N,), where the size is in tokens: each of a sample's tokens counts. None by samples."""
        if self.token_budget is None:
            return None
        assert self.num_tokens is not None
        return np.asarray(self.num_tokens / self.num_tokens.mean())

    @cached_property
    def estimate(self) -> Estimate:
        """Spectra of the validation set and of its halves, split where stiff ends."""
        assert self._estimate is not None, "an objective that asks for the spectrum needs gradients"
        return self._estimate()

    def samples(self, role: str) -> pa.Table:
        """Return the usable samples' rows: id, domain, num_tokens, loss and more."""
        return self._column("samples", role)

    def gradients(self, role: str) -> Gradients:
        """Return sketched gradients; the validation set's in the order of the estimate's halves."""
        found: Gradients = self._column("gradients", role)
        return found

    def ngrams(self, role: str) -> Blocks:
        """Return hashed n-grams, rows of unit norm in blocks of shape (n_b, L), in the order of the gradients."""
        found: Blocks = self._column("ngrams", role)
        return found

    def path(self, role: str) -> PathLosses:
        """Return losses along the descent path, and signs of damage, in the order of the samples."""
        found: PathLosses = self._column("path", role)
        return found

    @cached_property
    def told_apart(self) -> float | None:
        """The share of pairs in which words tell a validation document from one of the pool; None where unknown."""
        return None if self._likeness is None else self._likeness()

    def has(self, column: str) -> bool:
        """True if a column can be asked for."""
        return column in self._loaders

    def problem(
        self,
        features: FeatureMatrix | NDArray[np.floating],
        *,
        objective: Objective,
        target: Float | None = None,
        start: Float | None = None,
        linear: Sequence[Linear] = (),
        stiff_cost: NDArray[np.float64] | None = None,
        units: Float | None = None,
        ratio: float = np.inf,
        facts: Mapping[str, Any] | None = None,
        remarks: Sequence[str] = (),
        columns: Mapping[str, NDArray[Any]] | None = None,
        left_out: NDArray[np.bool_] | None = None,
    ) -> Built:
        """Return the problem of these features, with the size and the constraints that were asked for.

        Args:
            features, objective, target, start, linear: as `SelectionProblem` takes them.
            stiff_cost: shape (N,), or (N, m) with a budget for each band; nothing costs anything where left out.
            units, facts, remarks, columns: as `Built` keeps them.
            ratio: of the budget, in `units`.
            left_out: samples that the objective will not have, (N,), but where the user forces them in.
        """
        if stiff_cost is None:
            stiff_cost, units = np.zeros(features.shape[0]), None
        constraints = dict(self._constraints)
        if left_out is not None:
            forced = {name: self._mask(name) for name in ("forced_in", "forced_out")}
            left_out = left_out & ~forced["forced_in"]
            self._require_enough(forced["forced_out"], left_out)
            constraints["forced_out"] = forced["forced_out"] | left_out
        problem = SelectionProblem(
            features=features,
            stiff_cost=stiff_cost,
            budget=np.inf if units is None else budget_of(ratio, units),
            objective=objective,
            target=target,
            start=start,
            num_selected=self.num_selected,
            num_tokens=self.num_tokens,
            token_budget=self.token_budget,
            linear=linear,
            **constraints,
        )
        return Built(problem, units, facts or {}, remarks, columns or {})

    def _require_enough(self, forced_out: NDArray[np.bool_], left_out: NDArray[np.bool_]) -> None:
        """See that the size asked for can be had without what the objective leaves out."""
        assert self.num_tokens is not None
        by_tokens = self.token_budget is not None
        sizes = self.num_tokens if by_tokens else np.ones(len(left_out))
        wanted = float(self.num_selected or 0) if self.token_budget is None else float(self.token_budget)
        unit, left = ("tokens" if by_tokens else "documents"), float(sizes[~(forced_out | left_out)].sum())
        if left < wanted <= float(sizes[~forced_out].sum()):
            raise InputError(
                subject="documents that do not look damaged",
                must=f"have the {wanted:,.0f} {unit} that are asked for",
                got=f"{left:,.0f}, since {int(left_out.sum()):,} of {len(left_out):,} documents look damaged",
                do="select less; or, where they are good, raise max_repeated or max_common, or lower min_order, in "
                f"{option('objective_options')}",
            )

    def _mask(self, name: str) -> NDArray[np.bool_]:
        """Return forced samples, (N,)."""
        assert self.num_tokens is not None
        mask = np.zeros(len(self.num_tokens), dtype=bool)
        given = self._constraints.get(name)
        mask[np.asarray([] if given is None else given, dtype=None if given is not None else np.intp)] = True
        return mask

    def _column(self, name: str, role: str) -> Any:
        if (name, role) not in self._loaded:
            assert name in self._loaders, f"an objective that asks for {name} must say so in `needs`"
            self._loaded[name, role] = self._loaders[name](role)
        return self._loaded[name, role]


def budget_of(ratio: float, units: Float) -> float | Float:
    """Return τ = ratio · unit: one number, or with several bands one for each, shape (m,)."""
    budgets = ratio * units if np.isfinite(ratio) else np.full_like(units, np.inf)
    return float(budgets[0]) if len(units) == 1 else budgets
