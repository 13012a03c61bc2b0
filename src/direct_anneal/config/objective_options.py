"""The options of objectives as `select` has them: each objective knows some of them, with defaults of its own."""

from __future__ import annotations

from typing import Any

from direct_anneal.config.objective import (
    BUILT_IN,
    DAMPING,
    DEFAULT_OBJECTIVE,
    DEFAULT_ON_ARRAYS,
    NGRAM_WEIGHT,
    TARGET_SCALE,
    Filter,
    FilterCurvature,
    Gradients,
    Noise,
    ObjectiveConfig,
    Ratio,
    Reference,
)
from direct_anneal.config.option import configuration, declared, option
from direct_anneal.errors import InputError

GROUP = "objective"


def name_or_objective(name: str, given: object) -> object:
    """Return the name of an objective, or one with its options."""
    if not isinstance(given, str | ObjectiveConfig):
        raise InputError(field=name, must="be a name", got=repr(given))
    return given


def _objective_option(default: str) -> Any:
    default_first = sorted(BUILT_IN, key=lambda name: name != default)
    return option(
        default=default,
        settle=name_or_objective,
        affects="solving",
        group=GROUP,
        metavar="NAME",
        help="; ".join([*(f"{name}: {BUILT_IN[name]}" for name in default_first), "or a plugin's"]),
    )


@configuration
class GradientOptions:
    """The objective, its filter and its stiff budget."""

    objective: str | ObjectiveConfig = _objective_option(DEFAULT_ON_ARRAYS)
    target_scale: float | None = option(
        default=None,
        unset=f"{TARGET_SCALE:g}",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        metavar="C",
        help="of matching: 1 aims at the validation set's mean, larger values lie farther from the pool's",
    )
    filter: Filter | None = option(
        default=None,
        unset="flat for energy, else newton",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        help="gain of a direction: newton 1 / (curvature + damping), flat 0 if stiff and else 1, none 1",
    )
    damping: float | None = option(
        default=None,
        unset=f"{DAMPING:g}",
        affects="solving",
        follows=("objective", "filter"),
        group=GROUP,
        metavar="D",
        help="damping of the filter newton, in units of the largest curvature",
    )
    filter_curvature: FilterCurvature | None = option(
        default=None,
        unset="both; validation if the curvature is not the empirical Fisher",
        affects="solving",
        follows=("objective", "filter", "curvature"),
        group=GROUP,
        help="documents whose gradients give the curvature of the filter newton",
    )
    gradients: Gradients | None = option(
        default=None,
        unset="raw for energy, else unit",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        help="use gradients as they are, or scaled to length 1",
    )
    noise: Noise | None = option(
        default=None,
        unset="raw",
        affects="solving",
        group=GROUP,
        help="stiff cost of gradients as they are, or around their mean",
    )
    bands: int | None = option(
        default=None,
        unset="1",
        affects="solving",
        group=GROUP,
        metavar="M",
        help="stiff budgets, for parts of equal energy of the spectrum",
    )
    budget_ratio: Ratio | None = option(
        default=None,
        unset="1 for energy, else none; the paper: 0.1",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        metavar="X",
        help="stiff budget per selected document, in units of the reference's mean stiff cost, or none",
    )
    budget_reference: Reference | None = option(
        default=None,
        unset="pool",
        affects="solving",
        group=GROUP,
        help="whose mean stiff cost; of validation, held out",
    )


@configuration
class ObjectiveOptions(GradientOptions):
    """The same with what documents have beside gradients."""

    objective: str | ObjectiveConfig = _objective_option(DEFAULT_OBJECTIVE)
    ngram_weight: float | None = option(
        default=None,
        unset=f"{NGRAM_WEIGHT:g} where n-grams can be used, else 0",
        affects="solving",
        follows=("objective", "filter", "filter_curvature", "gradients", "curvature"),
        group=GROUP,
        metavar="B",
        help="weight of n-grams of tokens, relative to gradients, whose weight is 1",
    )


# Options that objectives have in common.
OBJECTIVE_FIELDS = tuple(name for name in declared(ObjectiveOptions) if name != "objective")


def options_given(config: Any) -> dict[str, Any]:
    """Return the options in common that a configuration has, by name; None where left out."""
    return {name: getattr(config, name, None) for name in OBJECTIVE_FIELDS}
