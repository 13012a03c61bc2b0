"""The options of `select`, and of `solve`, which chooses again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.names import PAPER_SHARE, CurvatureName, Unit
from direct_anneal.config.objective import ObjectiveConfig, beside_of, objective_of
from direct_anneal.config.objective_options import GROUP, OBJECTIVE_FIELDS, ObjectiveOptions, options_given
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import CURVATURE, DATA, EngineConfig, elbow_option, overwrite_option, trust_option
from direct_anneal.config.types import Amounts, OptionalNumbers, OptionalPath, OptionalValues, PathText, Texts
from direct_anneal.config.values import amounts
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_EIGENPAIRS = 32
_WIDEST_SKETCH = 14_336  # R: with n-grams a matrix of 2 GiB in float64

SIZE = "size of the selection (give one)"
CONSTRAINTS = "constraints on domains and single documents"
GENERAL = "general text"


# Those that an objective beside the chosen one has as asked, too.
_SHARED_BESIDE = ("noise", "bands", "budget_ratio", "budget_reference")


def named_values(name: str, given: object) -> dict[str, Any]:
    """Name → value, from a mapping or from texts "name=value", whose values are numbers, true, false or texts."""
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    found: dict[str, Any] = {}
    for text in given if isinstance(given, list | tuple) else [given]:
        key, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        require(bool(key and equals), name, "NAME=VALUE", text)
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def import_plugin(module: str) -> None:
    """Import a module that registers objectives.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise InputError(
            field="plugin",
            must="name a module that Python can import",
            got=f"but {module}: {error}",
            do="install it, or run with PYTHONPATH set to where it lies",
        ) from error


def ratios(name: str, given: object) -> tuple[float, ...]:
    """Budget ratios of a frontier, from numbers or a text such as "0.1,0.5"; none of them stands for a grid."""
    texts = given if isinstance(given, list | tuple) else re.split(",", str(given))
    try:
        found = tuple(float(text) for text in texts if str(text).strip())
    except (TypeError, ValueError):
        found = (-1.0,)
    if not all(0 < ratio <= 1e6 for ratio in found):
        raise InputError(field=name, must="be budget ratios above 0, separated by commas", got=given)
    return found


@configuration
class SizeConfig:
    """The size of the selection; exactly one is given."""

    num_samples: int | None = option(
        default=None, affects="solving", group=SIZE, metavar="K", help="number of documents"
    )
    num_tokens: int | None = option(default=None, affects="solving", group=SIZE, metavar="B", help="number of tokens")
    fraction: float | None = option(
        default=None, affects="solving", group=SIZE, metavar="F", help="share of the pool's documents"
    )


@configuration
class CurvatureConfig:
    """The spectrum and its cutoff."""

    curvature: CurvatureName = option(
        default="empirical-fisher",
        affects="solving",
        group=CURVATURE,
        help="matrix whose spectrum is taken; the paper's is the empirical Fisher",
    )
    num_eigenpairs: int | None = option(
        default=None,
        unset=f"{DEFAULT_EIGENPAIRS}",
        affects="solving",
        follows=("curvature",),
        group=CURVATURE,
        metavar="N",
        help="leading eigenpairs to find, for ggn and hessian",
    )
    elbow: float | Literal["gap"] = elbow_option()
    num_stiff: int | None = option(
        default=None,
        unset="by the elbow",
        affects="solving",
        follows=("elbow",),
        group=CURVATURE,
        metavar="S",
        help="number of stiff directions",
    )


@configuration
class ConstraintsConfig:
    """Limits on domains, and documents that must or must not be chosen."""

    floors: Amounts = option(
        default_factory=dict,
        settle=amounts,
        affects="solving",
        group=CONSTRAINTS,
        flag="--floor",
        metavar="DOMAIN=X",
        help="at least so much of a domain: a share of the selection (0.1) or a number (500)",
    )
    ceilings: Amounts = option(
        default_factory=dict,
        settle=amounts,
        affects="solving",
        group=CONSTRAINTS,
        flag="--ceiling",
        metavar="DOMAIN=X",
        help="at most so much of a domain: a share of the selection (0.1) or a number (500)",
    )
    quota_unit: Unit | None = option(
        default=None,
        unset="as the size is given",
        affects="solving",
        group=CONSTRAINTS,
        help="unit of floors and ceilings",
    )
    force_in: OptionalPath = option(
        default=None,
        reads="path",
        affects="solving",
        group=CONSTRAINTS,
        metavar="FILE",
        help="ids, one a line, of documents that must be chosen",
    )
    force_out: OptionalPath = option(
        default=None,
        reads="path",
        affects="solving",
        group=CONSTRAINTS,
        metavar="FILE",
        help="ids, one a line, of documents that must not be chosen",
    )


@configuration
class GeneralTextConfig:
    """General text: what is trained on beside the selection, and what must not get worse by it."""

    retain_floor: float | None = option(
        default=None,
        unset="1 with --retain",
        affects="solving",
        group=GENERAL,
        metavar="X",
        help="least mean effect on the retained text, as a multiple of a random selection's",
    )

    replay: float | None = option(
        default=None,
        unset="0",
        affects="solving",
        group=GENERAL,
        metavar="SHARE",
        help="share of all tokens that is general text: random documents of the pool, written beside the selection",
    )


@configuration
class ChoiceConfig(GeneralTextConfig, ConstraintsConfig, CurvatureConfig, ObjectiveOptions, SizeConfig):
    """All that a choice depends on beside the features."""

    objective_options: OptionalValues = option(
        default=None,
        settle=named_values,
        affects="solving",
        follows=("objective",),
        group=GROUP,
        metavar="NAME=VALUE",
        help="options that a plugin's objective alone knows",
    )
    plugin: Texts = option(
        default=(),
        affects="solving",
        group=GROUP,
        metavar="MODULE",
        help="import this first: Python that registers objectives",
    )
    beside: Texts = option(
        default=(),
        affects="solving",
        group=GROUP,
        metavar="NAME",
        help="say what these objectives would have chosen, too",
    )
    relax_budget: bool = option(
        default=False,
        affects="solving",
        group=GROUP,
        help="raise an infeasible budget to 1.1 times the least feasible one",
    )
    frontier: OptionalNumbers = option(
        default=None,
        settle=ratios,
        bare=(),
        affects="nothing",
        group=GROUP,
        metavar="X1,X2,...",
        help="trace objective and composition over these budget ratios, too; without values over eight",
    )


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
        """The objectives of `beside`, by name, with their own defaults but for noise and budget, which are as asked."""
        shared = {name: getattr(self, name) for name in _SHARED_BESIDE}
        return {name: beside_of(name, shared, self.curvature) for name in self.beside}

    @property
    def needs(self) -> frozenset[str]:
        """Columns of the documents that are looked at: by the objectives asked for, and for the retained text."""
        effects = frozenset({"gradients"} if self.retain else ())
        return effects.union(self.chosen_objective.needs, *(one.needs for one in self.other_objectives.values()))

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
        """K or B, for a pool of documents of these lengths, shape (N,).

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
        """The values are checked together with those of the run."""


# These change what is made of the features, not the features.
SOLVING_FIELDS = affecting(SelectConfig, "solving")
