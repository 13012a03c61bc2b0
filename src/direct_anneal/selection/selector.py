"""The selection as an object on arrays, after scikit-learn's conventions, without needing it.

N samples of the pool, M of the validation set, R features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from direct_anneal import objectives
from direct_anneal.config.objective import (
    DEFAULT_OBJECTIVE,
    Filter,
    FilterCurvature,
    Gradients,
    Noise,
    ObjectiveConfig,
    Ratio,
    Reference,
    named,
    objective_of,
)
from direct_anneal.config.select import OBJECTIVE_FIELDS
from direct_anneal.curvature import PAPER_SHARE, SecondMoment, energy_share, estimate, widest_gap
from direct_anneal.errors import InputError, named_as_in_python
from direct_anneal.objectives import Inputs, SelectionObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.solver import Quota, Selection


@dataclass(kw_only=True, eq=False, repr=False)
class DirectSelector:
    """Chooses rows of an array: `fit` on the validation set's features, `select` among the pool's.

    Features are gradients, sketched or not, or whatever stands for them. Parameters are kept as they are given, and
    checked when they are used; `get_params`, `set_params` and `sklearn.base.clone` work as on any estimator.

    Args:
        num_selected, fraction: K, or K / N; exactly one is given.
        objective, target_scale, budget_ratio, budget_reference, filter, damping, filter_curvature, gradients, noise,
            bands, elbow: as in `SelectConfig`.

    Attributes:
        spectrum_: of the validation features, after `fit`.
        n_features_in_: R.

    >>> rng = np.random.default_rng(0)
    >>> selector = DirectSelector(num_selected=3).fit(rng.normal(size=(20, 8)))
    >>> len(selector.select(rng.normal(size=(50, 8))).indices)
    3
    """

    num_selected: int | None = None
    fraction: float | None = None
    objective: str | ObjectiveConfig = DEFAULT_OBJECTIVE
    target_scale: float | None = None
    budget_ratio: Ratio | None = None
    budget_reference: Reference | None = None
    filter: Filter | None = None
    damping: float | None = None
    filter_curvature: FilterCurvature | None = None
    gradients: Gradients | None = None
    noise: Noise | None = None
    bands: int | None = None
    elbow: float | Literal["gap"] = PAPER_SHARE

    @named_as_in_python()
    def fit(self, validation: ArrayLike, y: object = None) -> Self:  # noqa: ARG002
        """Take the spectrum of the validation features.

        Args:
            validation: Z, shape (M, R).
            y: nothing; for scikit-learn's pipelines.

        Raises:
            InputError: a parameter is out of range.
            ValueError: features are not finite, or all zero.
        """
        self.check()
        z = np.asarray(validation, dtype=np.float64)
        if z.ndim != 2:
            raise ValueError(f"validation features must have shape (M, R), got {z.shape}")
        rule = widest_gap if self.elbow == "gap" else energy_share(self.elbow)
        self._validation = z
        self._estimate = estimate(SecondMoment(z), len(z)).split(rule)
        self.spectrum_ = self._estimate.whole
        self.n_features_in_ = z.shape[1]
        return self

    @named_as_in_python()
    def check(self) -> None:
        """See that the parameters can be; whether there are enough samples only `select` can tell.

        Raises:
            InputError: one is out of range, two exclude each other, or the size is not given once.
        """
        self._objective()
        if (self.num_selected is None) == (self.fraction is None):
            raise InputError("the size of the selection must be given once, by num_selected or fraction")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(f"fraction must be in (0, 1], got {self.fraction}")

    @named_as_in_python()
    def select(
        self,
        pool: ArrayLike,
        *,
        quotas: Quota | Sequence[Quota] = (),
        forced_in: ArrayLike | None = None,
        forced_out: ArrayLike | None = None,
    ) -> Selection:
        """Choose among the pool's features.

        Args:
            pool: shape (N, R), in the units of the validation features.
            quotas, forced_in, forced_out: as `SelectionProblem` takes them.

        Raises:
            InputError: not fitted, the size is not given once or not in 1..N, or the constraints cannot be met; says
                what to do.
            ValueError: features are not finite, or of another R.
        """
        if not hasattr(self, "spectrum_"):
            raise InputError("a DirectSelector must be fitted before it selects: call fit(validation_features) first")
        values = np.asarray(pool)
        if values.ndim != 2 or values.shape[1] != self.n_features_in_:
            raise ValueError(
                f"pool features must have shape (N, {self.n_features_in_}), as the validation's, got {values.shape}"
            )
        norms = np.linalg.norm(values.astype(np.float64), axis=1)
        if not np.all(np.isfinite(norms)):
            raise ValueError("pool features must be finite: leave out samples whose gradient is not")
        size = self._size(len(values))
        units = (values / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
        gradients = {
            "pool": objectives.Gradients([units], norms),
            "validation": objectives.Gradients([], norms[:0], self._validation),
        }
        objective = self._objective()
        inputs = Inputs(
            num_selected=size,
            constraints={"quotas": quotas, "forced_in": forced_in, "forced_out": forced_out},
            loaders={"gradients": gradients.__getitem__},
            estimate=lambda: self._estimate,
        )
        return solve_within(objective, objective.build(inputs), relax=None)[1]

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """The parameters by name; none of them has parameters of its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; what was fitted stays until the next `fit`.

        Raises:
            ValueError: there is no such parameter.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{name!r} is no parameter of DirectSelector: there are {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"DirectSelector({', '.join(given)})"

    def _objective(self) -> SelectionObjective:
        given = {name: getattr(self, name, None) for name in OBJECTIVE_FIELDS}
        if isinstance(self.objective, str):
            known = (field.name for field in fields(named(self.objective)))
            given["ngram_weight"] = 0.0 if "ngram_weight" in known else None  # of arrays nobody knows the words
        objective = objective_of(self.objective, given, {}, "empirical-fisher")
        assert isinstance(objective, SelectionObjective)
        if extra := objective.needs - {"gradients"}:
            raise InputError(
                field="objective",
                must="need gradients alone where arrays are given",
                got=f"but needs {', '.join(extra)}",
            )
        return objective

    def _size(self, count: int) -> int:
        self.check()
        if self.fraction is not None:
            return max(1, math.floor(self.fraction * count + 0.5))
        assert self.num_selected is not None
        if not 1 <= self.num_selected <= count:
            raise InputError(f"num_selected must be in 1..{count}, the number of samples, got {self.num_selected}")
        return self.num_selected
