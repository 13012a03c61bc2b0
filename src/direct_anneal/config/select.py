"""The options of `select`, and of `solve`, which chooses again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from direct_anneal.config.choice import DEFAULT_EIGENPAIRS, ChoiceConfig, import_plugin
from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.names import PAPER_SHARE
from direct_anneal.config.objective import Likeness, ObjectiveConfig, beside_of, objective_of
from direct_anneal.config.objective_options import OBJECTIVE_FIELDS, options_given
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import DATA, EngineConfig, overwrite_option, trust_option
from direct_anneal.config.types import PathText
from direct_anneal.config.values import require_room
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDEST_SKETCH = 14_336  # R: with n-grams a matrix of 2 GiB in float64

# Those that an objective beside the chosen one has as asked, too.
SHARED_BESIDE = ("noise", "bands", "budget_ratio", "budget_reference")


@configuration
class SelectConfig(ChoiceConfig, FeaturesConfig):
    """Options of `select` and `plan`, as asked for.

    `chosen_objective` and `in_full` fill in what was left out.

    Raises:
        InputError: a value is out of range, the size is given never or twice, or two options exclude each other.
    """

    def __post_init__(self) -> None:
        FeaturesConfig.__post_init__(self)
        for module in self.plugin:
            import_plugin(module)
        self._check_size()
        require_room(self.floors, self.ceilings)
        self._check_curvature()
        floor = self.retain_floor
        require(floor is None or -1e6 <= floor <= 1e6, "retain_floor", "between -1e6 and 1e6", floor)
        if floor is not None and self.retain is None:
            raise InputError(
                field="retain_floor",
                must=f"come with {named('retain')}, the text that it is of",
                got="but no text is retained",
                do=f"pass {named('retain')} to select; solve has it from the run",
            )
        require(self.replay is None or 0 <= self.replay < 1, "replay", "at least 0 and below 1", self.replay)
        objectives = (self.chosen_objective, *self.other_objectives.values())
        sides = {getattr(objective, "filter_curvature", None) for objective in objectives}
        if (side := next(iter(sides & {"pool", "both"}), None)) and self.sketch_size > _WIDEST_SKETCH:
            raise InputError(
                field="sketch_size",
                must=f"be at most {_WIDEST_SKETCH} for {named('filter_curvature')} {side}, which takes a matrix of its "
                "square",
                got=self.sketch_size,
                do=f"make it smaller, or pass {named('filter_curvature')} validation",
            )

    def _check_size(self) -> None:
        sizes = {"num_samples": self.num_samples, "num_tokens": self.num_tokens, "fraction": self.fraction}
        given = [name for name, size in sizes.items() if size is not None]
        if len(given) != 1:
            one, two, three = map(named, sizes)
            raise InputError(
                subject="the size of the selection",
                must=f"be given once, by {one}, {two} or {three}",
                got=f"got {' and '.join(map(named, given)) or 'none'}",
            )
        require(self.num_samples is None or self.num_samples >= 1, "num_samples", "at least 1", self.num_samples)
        require(self.num_tokens is None or self.num_tokens >= 2, "num_tokens", "at least 2", self.num_tokens)
        require(self.fraction is None or 0 < self.fraction <= 1, "fraction", "in (0, 1]", self.fraction)

    def _check_curvature(self) -> None:
        require(self.elbow == "gap" or 0 < self.elbow <= 1, "elbow", 'in (0, 1], or "gap"', self.elbow)
        require(self.num_stiff is None or self.num_stiff >= 1, "num_stiff", "at least 1", self.num_stiff)
        if self.num_stiff is not None and self.elbow != PAPER_SHARE:
            raise InputError(
                field="num_stiff",
                must=f"be left out where {named('elbow')} is given",
                got=f"got {self.num_stiff} and {self.elbow}",
                do="leave one out",
            )
        if self.curvature != "empirical-fisher" and self.reduction != "mean":
            raise InputError(
                field="reduction",
                must=f"be mean for {named('curvature')} {self.curvature}, which is of the mean token loss",
                got=self.reduction,
                do="change one of them",
            )
        if self.curvature not in ("ggn", "hessian"):
            if self.num_eigenpairs is not None:
                raise InputError(
                    field="num_eigenpairs",
                    must=f"be left out unless {named('curvature')} is ggn or hessian",
                    got=f"but it is {self.curvature}, which gives all of them",
                    do="leave it out",
                )
            return
        if self.dtype != "float32":
            raise InputError(
                field="dtype",
                must=f"be float32 for {named('curvature')} {self.curvature}, which differentiates twice",
                got=self.dtype,
                do="change one of them",
            )
        if self.optimizer is not None:
            raise InputError(
                field="optimizer",
                must=f"be left out for {named('curvature')} {self.curvature}, which has the parameters' own geometry",
                got=self.optimizer,
                do="leave it out, or take a Fisher",
            )
        pairs = self.eigenpairs
        assert pairs is not None
        must = f"in 1..{self.sketch_size} ({named('sketch_size')})"
        require(1 <= pairs <= self.sketch_size, "num_eigenpairs", must, pairs)
        require(
            self.num_stiff is None or self.num_stiff <= pairs,
            "num_stiff",
            f"at most the {pairs} of {named('num_eigenpairs')}",
            self.num_stiff,
        )

    @property
    def is_empirical(self) -> bool:
        """True if the spectrum is of the gradients themselves, so that no model is needed for it."""
        return self.curvature == "empirical-fisher"

    @property
    def eigenpairs(self) -> int | None:
        """Number of eigenpairs sought; None where all are given."""
        if self.curvature not in ("ggn", "hessian"):
            return None
        return DEFAULT_EIGENPAIRS if self.num_eigenpairs is None else self.num_eigenpairs

    @cached_property
    def chosen_objective(self) -> ObjectiveConfig:
        """The objective that was asked for, with every option filled in.

        Raises:
            InputError: there is none of this name, or its options do not fit it or each other.
        """
        return objective_of(self.objective, options_given(self), self.objective_options or {}, self.curvature)

    @cached_property
    def other_objectives(self) -> dict[str, ObjectiveConfig]:
        """The objectives of `beside`, by name, with their own defaults but for noise, budget and the path, which are
        as asked.
        """
        shared = {name: getattr(self, name) for name in SHARED_BESIDE} | dict(self.chosen_objective.walk)
        return {name: beside_of(name, shared, self.curvature) for name in self.beside}

    @property
    def needs(self) -> frozenset[str]:
        """Columns of the documents that are looked at: by the objectives asked for, and for the retained text."""
        return self._all_need(lambda objective: objective.needs)

    def needs_where(self, told_apart: Likeness) -> frozenset[str]:
        """Return what of `needs` is looked at in a pool of this likeness to the target."""
        return self._all_need(lambda objective: objective.needs_where(told_apart))

    def _all_need(self, of: Callable[[ObjectiveConfig], frozenset[str]]) -> frozenset[str]:
        effects = frozenset({"gradients"} if self.retain else ())
        return effects.union(of(self.chosen_objective), *map(of, self.other_objectives.values()))

    @property
    def in_full(self) -> dict[str, Any]:
        """Every field, with what was left out filled in: what a run records."""
        options = self.chosen_objective.options()
        own = {name: value for name, value in options.items() if name not in OBJECTIVE_FIELDS}
        content = super().in_full | {name: options.get(name) for name in OBJECTIVE_FIELDS}
        content["num_eigenpairs"] = self.eigenpairs
        content["replay"] = self.replay or None  # as runs have it that knew of none
        return content | {"objective": self.chosen_objective.name, "objective_options": own or None}

    def size_of(self, num_tokens: NDArray[np.int64]) -> tuple[int | None, int | None]:
        """Return K or B, for a pool of documents of these lengths, shape (N,).

        Raises:
            InputError: the pool is too small.
        """
        count, tokens = len(num_tokens), int(num_tokens.sum())
        if self.num_tokens is not None:
            if not num_tokens.min() <= self.num_tokens <= tokens:
                raise InputError(
                    field="num_tokens",
                    must=f"lie between the shortest document and the whole pool ({num_tokens.min():,} to {tokens:,} "
                    "tokens)",
                    got=f"got {self.num_tokens:,}",
                )
            return None, self.num_tokens
        if self.num_samples is not None:
            if self.num_samples > count:
                raise InputError(
                    field="num_samples",
                    must=f"be at most the pool's {count:,} usable documents",
                    got=f"got {self.num_samples:,}",
                )
            return self.num_samples, None
        assert self.fraction is not None
        return max(1, math.floor(self.fraction * count + 0.5)), None


@configuration
class SolveConfig(EngineConfig, ChoiceConfig):
    """Options of `solve`; what is left out stays as it was for the run."""

    run: PathText = option(
        kw_only=False, reads="run", affects="nothing", metavar="RUN_DIR", help="directory of a select or features run"
    )
    out: PathText = option(affects="nothing", group=DATA, metavar="DIR", help="the new run's directory")
    overwrite: bool = overwrite_option()
    trust_remote_code: bool = trust_option()

    def __post_init__(self) -> None:
        """Check nothing here: the values are checked together with those of the run."""


# These change what is made of the features, not the features.
SOLVING_FIELDS = affecting(SelectConfig, "solving")
