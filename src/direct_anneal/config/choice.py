"""The options of a choice: its size, objective, curvature, constraints and the general text beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from direct_anneal.config.names import CurvatureName, Unit
from direct_anneal.config.objective_options import GROUP, ObjectiveOptions
from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import CURVATURE, elbow_option
from direct_anneal.config.types import Amounts, OptionalNumbers, OptionalPath, OptionalValues, Texts
from direct_anneal.config.values import amounts
from direct_anneal.errors import InputError

DEFAULT_EIGENPAIRS = 32

SIZE = "size of the selection (give one)"
CONSTRAINTS = "constraints on domains and single documents"
GENERAL = "general text"


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
    """Parse the budget ratios of a frontier, from numbers or a text such as "0.1,0.5"; none stands for a grid."""
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
        unset="the unit of the size",
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
        help="ids, one a line, of documents that must be chosen; one with a line break as a JSON string",
    )
    force_out: OptionalPath = option(
        default=None,
        reads="path",
        affects="solving",
        group=CONSTRAINTS,
        metavar="FILE",
        help="ids of documents that must not be chosen, listed in the same way",
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
        help="least mean effect of the choice on the retained text, as a multiple of random documents' effect",
    )

    replay: float | None = option(
        default=None,
        unset="0",
        affects="solving",
        group=GENERAL,
        metavar="SHARE",
        help="also write random documents of the pool, so that they make up this share of all tokens",
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
        help="options of this objective alone",
    )
    plugin: Texts = option(
        default=(),
        affects="solving",
        group=GROUP,
        metavar="MODULE",
        help="Python module to import first; it registers objectives or formats",
    )
    beside: Texts = option(
        default=(),
        affects="solving",
        group=GROUP,
        metavar="NAME",
        help="also show what these objectives would choose",
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
        help="also compute objective and domains for these budget ratios; for eight if none is given",
    )
