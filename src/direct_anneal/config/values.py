"""Values of options as people give them, in Python, as flags or in a file, brought into the form of their annotation.

A configuration file can hold anything, and text like "no" or "1e-1" must not pass for what it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from os import PathLike, fspath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from direct_anneal.errors import InputError, option, suggestion

UNFIT = object()
_MUST = {
    bool: "true or false",
    int: "a whole number",
    float: "a number (in YAML 0.1 or 1.0e-1)",
    str: "a text",
    tuple: "a text or a list of texts",
}


@cache
def annotations_of(owner: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    return get_type_hints(owner)


def kinds_of(annotation: Any) -> tuple[Any, ...] | None:
    """Return the parts of a union, or the one type; None where one of them is not understood.

    Understood are bool, int, float, str, tuple[str, ...], tuple[float, ...], Literal and None.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = (bool, int, float, str, tuple[str, ...], tuple[float, ...], type(None))
    return kinds if all(kind in plain or get_origin(kind) is Literal for kind in kinds) else None


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words that an annotation allows; empty where it allows any."""
    return tuple(word for kind in kinds_of(annotation) or () if get_origin(kind) is Literal for word in get_args(kind))


def settled_value(name: str, annotation: Any, given: Any) -> Any:
    """Bring a value into the form of its annotation.

    A path will do for str, one text for tuple[str, ...]; where str and tuple[str, ...] both are allowed, a list of one
    text is that text. Values of types that `kinds_of` does not understand are left to their owner.

    Raises:
        InputError: the value is of another type, or a number that is not finite.
    """
    kinds = kinds_of(annotation)
    if kinds is None:
        return given
    found = next((value for kind in kinds if (value := _settled(kind, given)) is not UNFIT), UNFIT)
    if any(isinstance(number, float) and not math.isfinite(number) for number in _parts(found)):
        raise InputError(field=name, must="be finite", got=f"got {given}")  # records of runs hold no other number
    wanted = [kind for kind in kinds if kind is not type(None)]
    if {str, tuple[str, ...]} <= {*wanted}:
        wanted.remove(str)  # a text or a list of texts says both
        if isinstance(found, tuple) and len(found) < 2:
            found = next(iter(found), UNFIT)
    if found is UNFIT:
        only_words = all(get_origin(kind) is Literal for kind in wanted)
        raise InputError(
            field=name,
            must="be " + " or ".join(map(_must, wanted)),
            got=f"got {given if only_words else repr(given)}",
            do=suggestion(given, choices_of(annotation)),
        )
    return found


def text_value(annotation: Any, text: str) -> Any:
    """Return the number that a text of the command line spells, where one is allowed; else the text itself."""
    kinds = kinds_of(annotation) or ()
    if text in choices_of(annotation):
        return text
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _must(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    return "a number or a list of numbers" if kind == tuple[float, ...] else _MUST[get_origin(kind) or kind]


def _settled(kind: Any, given: Any) -> Any:
    """Return the value in the form of one kind; `UNFIT` where it is of another."""
    if get_origin(kind) is Literal:
        return given if given in get_args(kind) else UNFIT
    if kind == tuple[str, ...]:
        texts = [_settled(str, one) for one in (given if isinstance(given, list | tuple) else [given])]
        return UNFIT if UNFIT in texts else tuple(texts)
    if kind == tuple[float, ...]:
        parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
        numbers = [_settled(float, text_value(float, one) if isinstance(one, str) else one) for one in parts]
        return UNFIT if UNFIT in numbers else tuple(numbers)
    if kind is str:
        text = fspath(given) if isinstance(given, str | PathLike) else UNFIT
        return UNFIT if isinstance(text, str) and "\0" in text else text  # which no path, name or word has
    if isinstance(given, bool):  # which Python counts among the whole numbers
        return given if kind is bool else UNFIT
    if kind in (bool, type(None)):
        return given if isinstance(given, kind) else UNFIT
    return kind(given) if isinstance(given, Integral if kind is int else Real) else UNFIT


def amounts(name: str, given: object) -> dict[str, int | float]:
    """Parse domain → amount, from a mapping or from texts "domain=amount", in the order of domains.

    Raises:
        InputError: a part is neither a share in 0.0..1.0 nor a whole number, or a domain is named twice.
    """
    found: dict[str, int | float] = {}
    for domain, amount in pairs(given):
        if isinstance(amount, str):
            try:
                amount = int(amount) if amount.isascii() and amount.isdigit() else float(amount)
            except ValueError:
                amount = None
        share = isinstance(amount, float) and 0 <= amount <= 1
        number = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0
        if not isinstance(domain, str) or not domain or not (share or number):
            raise InputError(
                field=name,
                must="be DOMAIN=SHARE, a share in 0.0..1.0, or DOMAIN=NUMBER, a whole number",
                got=f"got {f'{domain}={amount}' if amount is not None else given}",
            )
        if domain in found:
            raise InputError(field=name, must="name each domain once", got=f"but {domain} is named twice")
        found[domain] = amount
    return dict(sorted(found.items()))


def require_room(floors: Mapping[str, int | float], ceilings: Mapping[str, int | float]) -> None:
    """See that no floor is above the ceiling of the same domain, where both are shares or both are numbers.

    Raises:
        InputError: one is.
    """
    for domain, floor in floors.items():
        ceiling = ceilings.get(domain, floor)
        if type(floor) is type(ceiling) and floor > ceiling:
            raise InputError(
                field="floors",
                must=f"be at most the ceiling of {domain}, {ceiling}",
                got=f"got {floor}",
                do=f"lower it, or raise {option('ceilings')}",
            )


def pairs(given: object) -> list[tuple[Any, Any]]:
    """Return names and values, of a mapping or of texts "name=value"; None stands for a value that is not there."""
    if isinstance(given, Mapping):
        return list(given.items())
    found: list[tuple[Any, Any]] = []
    for text in given if isinstance(given, list | tuple) else [given]:
        name, equals, value = text.rpartition("=") if isinstance(text, str) else (text, "", None)
        found.append((name if equals else text, value if equals else None))
    return found
