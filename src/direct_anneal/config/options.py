"""Options as people give them, in Python, as flags or in a file: one check for all commands.

A configuration file can hold anything, and text like "no" or "1e-1" must not pass for what it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.redaction import redacted

OPTIONS_FILE = "options.json"

_UNFIT = object()
_MUST = {
    bool: "true or false",
    int: "a whole number",
    float: "a number (in YAML 0.1 or 1.0e-1)",
    str: "a text",
    tuple: "a text or a list of texts",
}


def require(holds: bool, field: str, must: str, value: object) -> None:
    """Refuse a value of an option.

    Raises:
        InputError: it does not hold.
    """
    if not holds:
        raise InputError(field=field, must=f"be {must}", got=f"got {value}")


def settle(options: Any) -> None:
    """Hold every field of a frozen dataclass to its annotation, and bring the value into that form.

    Understood are bool, int, float, str (a path will do), tuple[str, ...] (one text will do), Literal, and unions of
    these and None; where str and tuple[str, ...] both are, a list of one text is that text. Fields of any other type
    are left to their owner.

    Raises:
        InputError: a value is of another type.
    """
    hints = get_type_hints(type(options))
    for name in (field.name for field in fields(options)):
        kinds, given = _kinds(hints[name]), getattr(options, name)
        if kinds is None:
            continue
        found = next((value for kind in kinds if (value := _settled(kind, given)) is not _UNFIT), _UNFIT)
        wanted = [kind for kind in kinds if kind is not type(None)]
        if {str, tuple[str, ...]} <= {*wanted}:
            wanted.remove(str)  # a text or a list of texts says both
            if isinstance(found, tuple) and len(found) < 2:
                found = next(iter(found), _UNFIT)
        must = " or ".join(map(_must, wanted))
        choices = all(get_origin(kind) is Literal for kind in wanted)
        require(found is not _UNFIT, name, must, given if choices else repr(given))
        object.__setattr__(options, name, found)


def described(options: Any) -> str:
    """A repr that says what was asked for: the fields that are not at their defaults."""
    given = []
    for field in fields(options):
        value = getattr(options, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            given.append(f"{field.name}={value!r}")
    return f"{type(options).__name__}({', '.join(given)})"


def keep(options: Mapping[str, Any], out: Path) -> None:
    """Write options in full, defaults and all, as `--config` takes them."""
    with replacing(out / OPTIONS_FILE) as temporary:
        temporary.write_text(json.dumps(redacted(options), indent=1) + "\n", encoding="utf-8")


def require_device(device: str, *, numbered: bool = True) -> None:
    """See that a device is there.

    Args:
        numbered: cuda:1 will do, beside cuda.

    Raises:
        InputError: it is not.
    """
    import torch

    pattern = r"cpu|cuda(:\d+)?" if numbered else "cpu|cuda"
    require(re.fullmatch(pattern, device) is not None, "device", "cpu or cuda", device)
    count = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise InputError(f"--device {device} needs that device, but torch sees {count or 'none'}: use another")


def _kinds(annotation: Any) -> tuple[Any, ...] | None:
    """The parts of an annotation; None where one is not understood."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = (bool, int, float, str, tuple[str, ...], type(None))
    return kinds if all(kind in plain or get_origin(kind) is Literal for kind in kinds) else None


def _must(kind: Any) -> str:
    return " or ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _MUST[get_origin(kind) or kind]


def _settled(kind: Any, given: Any) -> Any:
    """What was given, in the form of one kind; `_UNFIT` where it is of another."""
    if get_origin(kind) is Literal:
        return given if given in get_args(kind) else _UNFIT
    if kind == tuple[str, ...]:
        texts = [_settled(str, one) for one in (given if isinstance(given, list | tuple) else [given])]
        return _UNFIT if _UNFIT in texts else tuple(texts)
    if kind is str:
        return str(given) if isinstance(given, str | PathLike) else _UNFIT
    if isinstance(given, bool):  # which Python counts among the whole numbers
        return given if kind is bool else _UNFIT
    if kind in (bool, type(None)):
        return given if isinstance(given, kind) else _UNFIT
    return kind(given) if isinstance(given, Integral if kind is int else Real) else _UNFIT
