"""The registry of objectives, and the protocol of their configurations.

An objective is a frozen dataclass: its fields are its options, with their defaults. `direct_anneal.objectives` has
ours, a module each, and the methods that build and solve; docs/extending.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, ClassVar, Literal, Self, TypeVar

from direct_anneal.config.option import described, settling
from direct_anneal.errors import InputError, option, suggestion

Filter = Literal["newton", "flat", "none"]
FilterCurvature = Literal["validation", "pool", "both"]
Gradients = Literal["raw", "unit"]
Noise = Literal["raw", "centred"]
Reference = Literal["pool", "validation"]
Ratio = float | Literal["none"]

# Gives how often words tell a validation document from one of the pool (`run.likeness`); None where too few are there.
Likeness = Callable[[], float | None]

DEFAULT_OBJECTIVE = "blend"
DEFAULT_ON_ARRAYS = "matching"  # where features are all there is of a document
DAMPING = 0.01
NGRAM_WEIGHT = 1.0
TARGET_SCALE = 8.0

# Modules of `direct_anneal.objectives`, each of which registers what it is named for and is imported when asked for;
# with what the help says of it.
BUILT_IN = {
    "matching": "a mean gradient as close as possible to the validation set's",
    "descent": "the largest decrease of the validation loss, each document by itself",
    "energy": "the paper's: the longest sum of gradients without their stiff part",
    "path": "the largest drop of loss along the descent path",
    "blend": "the best sum of two ranks, by path and by descent",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ObjectiveConfig:
    """One objective with its options; those left at None are found by `resolved`.

    Attributes:
        name: as `objective` names it.
        needs: of each document: "gradients", "ngrams", "path" (losses along it), "signs" (of damage; they come with
            losses along the path). Nothing else is computed for it.
        goal: of the selection, after "chosen for", for the report.
        meaning: of a document's score, after "a document's score is".
        not_beside: options of a chosen objective that do not count for it where it stands beside that one.

    Raises:
        InputError: an option is of another type than its annotation, or out of range.
    """

    name: ClassVar[str]
    goal: ClassVar[str]
    meaning: ClassVar[str]
    not_beside: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Check values; each is in the form of its annotation by now."""

    def __repr__(self) -> str:
        return described(self)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def needs_where(self, told_apart: Likeness) -> frozenset[str]:  # noqa: ARG002, some depend on it
        """Return what of `needs` it looks at in a pool of this likeness to the target."""
        return self.needs

    @property
    def walk(self) -> Mapping[str, Any]:
        """Options of the descent path, where it looks at losses along it."""
        return {}

    def resolved(self, curvature: str) -> Self:  # noqa: ARG002, some objectives' defaults depend on it
        """Return the same with every option filled in.

        Args:
            curvature: of the stiff directions, as `SelectConfig` names it.

        Raises:
            InputError: two options exclude each other.
        """
        return self

    def options(self) -> dict[str, Any]:
        """Return the options by name, as JSON takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_registered: dict[str, type[ObjectiveConfig]] = {}

T = TypeVar("T", bound=type[ObjectiveConfig])


def register(objective: T) -> T:
    """Make an objective known by its name, its values brought into the form of their annotations; a class decorator.

    Raises:
        ValueError: another class has that name.
    """
    known = _registered.setdefault(objective.name, objective)
    if (known.__module__, known.__qualname__) != (objective.__module__, objective.__qualname__):
        raise ValueError(f"objective {objective.name!r} is {known.__module__}.{known.__qualname__} already: rename one")
    _registered[objective.name] = settling(objective)
    return objective


def names() -> tuple[str, ...]:
    """Return every objective that is known, ours first."""
    return (*BUILT_IN, *sorted(_registered.keys() - set(BUILT_IN)))


def named(name: str) -> type[ObjectiveConfig]:
    """Return the class of an objective.

    Raises:
        InputError: there is none of this name.
    """
    if name in BUILT_IN:
        import_module(f"direct_anneal.objectives.{name}")
    if name not in _registered:
        raise InputError(
            field="objective",
            must=f"be {', '.join(names()[:-1])} or {names()[-1]}",
            got=name,
            do=suggestion(name, names()) or f"one of your own needs its module in {option('plugin')}",
        )
    return _registered[name]


def objective_of(
    objective: str | ObjectiveConfig, given: Mapping[str, Any], own: Mapping[str, Any], curvature: str
) -> ObjectiveConfig:
    """Return the objective that was asked for, with every option filled in.

    Args:
        objective: a name, or an objective with its options.
        given: options that several objectives know, None where left out.
        own: options that it alone knows.
        curvature: as for `ObjectiveConfig.resolved`.

    Raises:
        InputError: there is no such objective, it has no such option, or a value is out of range.
    """
    asked = {name: value for name, value in given.items() if value is not None} | dict(own)
    if isinstance(objective, ObjectiveConfig):
        if asked:
            first = next(iter(asked))
            raise InputError(field=first, must=f"be an argument of {type(objective).__name__} where that is given")
        return objective.resolved(curvature)
    kind = named(objective)
    known = [field.name for field in fields(kind)]
    for name in asked:
        if name not in known:
            owners = [other for other in names() if name in (field.name for field in fields(named(other)))]
            must = f"be left out with {option('objective')} {objective}, which has no such option"
            do = f"it is of {', '.join(owners)}" if owners else None
            if name in own:  # where it may bear the name of no flag
                raise InputError(subject=f"{name} in {option('objective_options')}", must=must, do=do)
            raise InputError(field=name, must=must, do=do)
    try:
        return kind(**asked).resolved(curvature)
    except InputError as error:
        if error.field not in own or error.must is None:
            raise
        subject = f"{error.field} in {option('objective_options')}"
        raise InputError(subject=subject, must=error.must, got=error.got, do=error.do) from error


def beside_of(name: str, shared: Mapping[str, Any], curvature: str) -> ObjectiveConfig:
    """Return an objective for comparison with the chosen one: its own defaults, and what is asked of every objective.

    Args:
        shared: options that count for it, too, as far as it has them; None where left out.
        curvature: as for `ObjectiveConfig.resolved`.

    Raises:
        InputError: there is no such objective.
    """
    known = {field.name for field in fields(named(name))} - named(name).not_beside
    return objective_of(name, {option: value for option, value in shared.items() if option in known}, {}, curvature)
