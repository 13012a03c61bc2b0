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
        help="for matching: distance of its target from the pool's mean; 1 is the validation set's mean",
    )
    filter: Filter | None = option(
        default=None,
        unset="flat for energy, else newton",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        help="weight of a direction: newton 1 / (curvature + damping); flat 0 if it is stiff, else 1; none 1",
    )
    damping: float | None = option(
        default=None,
        unset=f"{DAMPING:g}",
        affects="solving",
        follows=("objective", "filter"),
        group=GROUP,
        metavar="D",
        help="damping in the filter newton, as a multiple of the largest curvature",
    )
    filter_curvature: FilterCurvature | None = option(
        default=None,
        unset="both; validation if the curvature is not the empirical Fisher",
        affects="solving",
        follows=("objective", "filter", "curvature"),
        group=GROUP,
        help="documents from which the filter newton takes the curvature",
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
        help="compute the stiff cost from gradients as they are, or from their difference to the mean",
    )
    bands: int | None = option(
        default=None,
        unset="1",
        affects="solving",
        group=GROUP,
        metavar="M",
        help="split the stiff directions into M parts of equal energy, each with a budget of its own",
    )
    budget_ratio: Ratio | None = option(
        default=None,
        unset="1 for energy, else none; the paper: 0.1",
        affects="solving",
        follows=("objective",),
        group=GROUP,
        metavar="X",
        help="limit on the mean stiff cost of the choice, as a multiple of the reference's mean; or none",
    )
    budget_reference: Reference | None = option(
        default=None,
        unset="pool",
        affects="solving",
        group=GROUP,
        help="documents whose mean stiff cost is the unit of the budget; validation documents are held out",
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
        help="weight of n-grams of tokens; gradients have the weight 1",
    )


# Options that objectives have in common.
OBJECTIVE_FIELDS = tuple(name for name in declared(ObjectiveOptions) if name != "objective")


def options_given(config: Any) -> dict[str, Any]:
    """Return the options in common that a configuration has, by name; None where left out."""
    return {name: getattr(config, name, None) for name in OBJECTIVE_FIELDS}
