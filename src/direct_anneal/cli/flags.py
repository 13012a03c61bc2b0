"""Flags of a command, made from its configuration, and the values that were given for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args, get_origin

from direct_anneal.config.option import Declared, declared
from direct_anneal.config.values import text_value
from direct_anneal.errors import InputError, flag, suggestion
from direct_anneal.io.records import RecordError
from direct_anneal.io.settings import read_yaml


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Add a flag or argument for every option. What is not given stays out of the namespace."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in in_order(config):
        if each.meta.python_only:
            continue
        if each.meta.argument:
            optional = {} if each.required else {"nargs": "?", "default": argparse.SUPPRESS}
            parser.add_argument(each.name, metavar=each.flag, help=_help(each), **optional)  # type: ignore[arg-type]
            continue
        name = each.meta.group or "options"
        if name not in groups:
            groups[name] = parser if name == "options" else parser.add_argument_group(name)  # type: ignore[assignment]
        groups[name].add_argument(each.flag, dest=each.name, default=argparse.SUPPRESS, help=_help(each), **_kind(each))


def in_order(config: type) -> list[Declared]:
    """Return the options of a configuration, those that must be given first."""
    return sorted(declared(config).values(), key=lambda each: not each.required)


def _help(each: Declared) -> str:
    text = each.meta.help
    if each.required and not each.meta.argument:
        text = f"{text} (required)"
    elif each.meta.unset is not None or not (isinstance(each.default, bool) or each.default in (None, (), {}, MISSING)):
        text = f"{text} (default: {each.default_text})"
    return text.replace("%", "%%")


def _kind(each: Declared) -> dict[str, Any]:
    """Declare the values to argparse as texts; `values` converts them."""
    if isinstance(each.default, bool):
        return {"action": argparse.BooleanOptionalAction if each.default else "store_true"}
    parts = (each.annotation, *get_args(each.annotation))
    if tuple[str, ...] in parts or any(get_origin(part) is Mapping for part in parts):
        return {"action": "extend", "nargs": "+", "metavar": each.metavar}
    if each.meta.bare is not MISSING:
        return {"nargs": "?", "const": each.meta.bare, "metavar": each.metavar}
    return {"metavar": each.metavar}


def values(config: type, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values given for options: texts become numbers where these are wanted."""
    options = declared(config)
    return {
        name: text_value(options[name].annotation, value) if isinstance(value, str) else value
        for name, value in namespace.items()
        if name in options
    }


def from_file(path: str, config: type, unused: frozenset[str], command: str) -> dict[str, Any]:
    """Return options from a YAML or JSON file, by their names in Python.

    Args:
        unused: names that the file may have, and that mean nothing to this command.

    Raises:
        InputError: it cannot be read, or has a name that is no option's.
    """
    try:
        content = read_yaml(Path(path))
    except (OSError, RecordError) as error:
        raise InputError(
            field="config", must="be a YAML file of options", got=f"but {path}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            field="config", must="map names of options to values", got=f"but {path} has a {type(content).__name__}"
        )
    known = [each.name for each in declared(config).values() if not (each.meta.python_only or each.meta.argument)]
    unknown = [str(name) for name in content if name not in known and name not in unused]
    if unknown:
        told = suggestion(unknown[0], known) if len(unknown) == 1 else None
        raise InputError(
            field="config",
            must=f"have names of options of {command}",
            got=f"but {path} has {', '.join(unknown)}",
            do=told or f"known are {', '.join(sorted(known))}",
        )
    return {name: value for name, value in content.items() if name in known}


def speller(config: type, in_file: frozenset[str]) -> Callable[[str], str]:
    """Spell options as a command has them: as flags, and where the value came from the file as names there."""
    options = declared(config)

    def spell(name: str) -> str:
        if name in in_file:
            return f"{name} (in the file)"
        return options[name].flag if name in options else flag(name)

    return spell
