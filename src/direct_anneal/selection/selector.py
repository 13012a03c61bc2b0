"""The selection as an object on arrays, after scikit-learn's conventions, without needing it.

N samples of the pool, M of the validation set, R features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from direct_anneal import objectives
from direct_anneal.config.objective import named, objective_of
from direct_anneal.config.objective_options import options_given
from direct_anneal.config.option import declared
from direct_anneal.config.selector import SelectorConfig
from direct_anneal.config.signature import keeps
from direct_anneal.curvature import SecondMoment, energy_share, estimate, widest_gap
from direct_anneal.errors import InputError
from direct_anneal.objectives import Inputs, SelectionObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.solver import Quota, Selection


class DirectSelector:
    """Selector of an array's rows: `fit` on the validation set's features, `select` among the pool's.

    Features are gradients, sketched or not, or whatever stands for them. Parameters are kept as they are given, and
    checked when they are used; `get_params`, `set_params` and `sklearn.base.clone` work as on any estimator.

    Args:
        the options of `SelectorConfig`: `num_selected` or `fraction`, the objective and its stiff budget.

    Attributes:
        spectrum_: of the validation features, after `fit`.
        n_features_in_: R.

    >>> rng = np.random.default_rng(0)
    >>> selector = DirectSelector(num_selected=3).fit(rng.normal(size=(20, 8)))
    >>> len(selector.select(rng.normal(size=(50, 8))).indices)
    3
    """

    if TYPE_CHECKING:  # the options are attributes, too

        def __getattr__(self, name: str) -> Any: ...

    @keeps(SelectorConfig)
    def __init__(self) -> None:
        """Keep the options."""

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
        z = np.asarray(_array(validation), dtype=np.float64)
        if z.ndim != 2:
            raise ValueError(f"validation features must have shape (M, R), got {z.shape}")
        rule = widest_gap if self.elbow == "gap" else energy_share(self.elbow)
        self._validation = z
        self._estimate = estimate(SecondMoment(z), len(z)).split(rule)
        self.spectrum_ = self._estimate.whole
        self.n_features_in_ = z.shape[1]
        return self

    def check(self) -> None:
        """See that the parameters can be; whether there are enough samples only `select` can tell.

        Raises:
            InputError: one is out of range, two exclude each other, or the size is not given once.
        """
        SelectorConfig(**self.get_params())
        self._objective()

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
            raise InputError(
                subject="a DirectSelector", must="be fitted before it selects", do="call fit(validation_features) first"
            )
        values = _array(pool)
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
        """Return the parameters by name; none of them has parameters of its own."""
        return {name: getattr(self, name) for name in declared(SelectorConfig)}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; what was fitted stays until the next `fit`.

        Raises:
            ValueError: there is no such parameter.
        """
        known = declared(SelectorConfig)
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{name!r} is no parameter of DirectSelector: there are {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        options = declared(SelectorConfig).values()
        changed = [each.name for each in options if getattr(self, each.name) != each.default]
        return f"DirectSelector({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def _objective(self) -> SelectionObjective:
        given = options_given(self)
        if isinstance(self.objective, str):
            known = (field.name for field in fields(named(self.objective)))
            given["ngram_weight"] = 0.0 if "ngram_weight" in known else None  # of arrays nobody knows the words
        objective = objective_of(self.objective, given, {}, "empirical-fisher")
        assert isinstance(objective, SelectionObjective)
        if extra := objective.needs - {"gradients", "signs"}:  # of damage, which rows without text do not show
            raise InputError(
                field="objective",
                must="need gradients alone where arrays are given",
                got=f"but needs {', '.join(extra)}",
            )
        return objective

    def _size(self, count: int) -> int:
        asked = SelectorConfig(**self.get_params())
        if asked.fraction is not None:
            return max(1, math.floor(asked.fraction * count + 0.5))
        assert asked.num_selected is not None
        if not 1 <= asked.num_selected <= count:
            raise InputError(
                field="num_selected", must=f"be in 1..{count}, the number of samples", got=asked.num_selected
            )
        return asked.num_selected


def _array(features: Any) -> np.ndarray:
    """Convert features to an array; tensors of any device and precision, with gradients or without, too.

    Raises:
        InputError: they are complex, whose imaginary parts would be lost.
    """
    if hasattr(features, "detach"):
        features = features.detach().cpu()
        features = (features if features.is_complex() else features.double()).numpy()
    array = np.asarray(features)
    if np.iscomplexobj(array):
        raise InputError(
            subject="features",
            must="be real numbers",
            got=f"got {array.dtype}",
            do="give real and imaginary parts as features of their own",
        )
    return array
