"""Functions that take their parameters from a configuration."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from direct_anneal.config.option import attributes, by_name, declared, settled
from direct_anneal.progress import Silent, showing

P = ParamSpec("P")
C = TypeVar("C")
S = TypeVar("S")
R = TypeVar("R")


def takes(config: Callable[P, C]) -> Callable[[Callable[[C], R]], Callable[P, R]]:
    """Make a function of a configuration one of that configuration's options.

    Type checkers, editors and `inspect.signature` see the options, with their types and defaults; the docstring lists
    them. For one release the function also takes `progress=`, as all did before there was `showing`.

    >>> from direct_anneal.config.files import DemoConfig
    >>> @takes(DemoConfig)
    ... def place(config: DemoConfig) -> str:
    ...     return config.out
    >>> place()
    'runs/demo'
    """

    def decorate(function: Callable[[C], R]) -> Callable[P, R]:
        return _as_options(config, function, config)

    return decorate


def takes_changes(config: Callable[P, C]) -> Callable[[Callable[[Mapping[str, Any]], R]], Callable[P, R]]:
    """Return the same for a function to which it matters which options were given: it takes these alone, by name."""

    def decorate(function: Callable[[Mapping[str, Any]], R]) -> Callable[P, R]:
        def changes(**given: Any) -> Mapping[str, Any]:
            return settled(_class(config), given)

        return _as_options(config, function, changes)

    return decorate


def keeps(config: Callable[P, object]) -> Callable[[Callable[[S], None]], Callable[Concatenate[S, P], None]]:
    """Make an `__init__` one that keeps a configuration's options as attributes, as they are given, unchecked."""

    def decorate(function: Callable[[S], None]) -> Callable[Concatenate[S, P], None]:
        options = declared(_class(config))

        @wraps(function)
        def init(self: S, *args: P.args, **given: P.kwargs) -> None:
            known = by_name(_class(config), args, dict(given))
            for name, each in options.items():
                setattr(self, name, known.get(name, each.default))
            function(self)

        described = inspect.signature(config)
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        init.__signature__ = described.replace(  # type: ignore[attr-defined]
            parameters=[first, *described.parameters.values()], return_annotation=None
        )
        return cast(Callable[Concatenate[S, P], None], init)

    return decorate


def _as_options(config: Callable[P, Any], function: Callable[[Any], R], made: Callable[..., Any]) -> Callable[P, R]:
    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        options: dict[str, Any] = dict(given)
        if "progress" not in options:
            return function(made(**by_name(_class(config), args, options, function.__name__)))
        warnings.warn(
            "progress= goes away: call inside `with direct_anneal.showing(progress):`", DeprecationWarning, stacklevel=2
        )
        with showing(options.pop("progress") or Silent()):
            return function(made(**by_name(_class(config), args, options, function.__name__)))

    described = inspect.signature(config)
    called.__signature__ = described.replace(  # type: ignore[attr-defined]
        return_annotation=inspect.signature(function).return_annotation
    )
    called.__annotations__ = {}
    summary, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
    called.__doc__ = "\n\n".join(filter(None, (summary, attributes(_class(config), "Args"), rest)))
    called.options = config  # type: ignore[attr-defined]
    return called


def _class(config: Callable[..., Any]) -> type:
    assert isinstance(config, type)
    return config


def renamed(function: Callable[P, R], before: str) -> Callable[P, R]:
    """Return the function under the name that it had before, which it keeps for one release."""
    now = function.__name__

    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        warnings.warn(f"{before} is called {now} now: use that name", DeprecationWarning, stacklevel=2)
        return function(*args, **given)

    called.__name__ = before
    return called
