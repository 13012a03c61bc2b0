"""A run's configuration back from its marker, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from direct_anneal.config.choice import SizeConfig, import_plugin, named_values
from direct_anneal.config.objective import ObjectiveConfig, named
from direct_anneal.config.objective_options import OBJECTIVE_FIELDS
from direct_anneal.config.option import declared
from direct_anneal.config.select import SelectConfig


def recorded_config(known: Mapping[str, Any], changes: Mapping[str, Any]) -> SelectConfig:
    """Return the configuration of a run with changes.

    Another way to give the size replaces the run's own. An objective that is named, the run's own included, begins with
    its defaults; without one, options of the run's objective that are left out stay.

    Raises:
        InputError: a value cannot be, or none gives the size.
    """
    given = dict(known)
    if any(changes.get(size) is not None for size in declared(SizeConfig)):
        given |= dict.fromkeys(declared(SizeConfig))
    options = declared(SelectConfig).items()
    given |= {name: each.default for name, each in options if not changes.keys().isdisjoint(each.meta.follows)}
    if isinstance(changes.get("objective"), ObjectiveConfig):
        given |= dict.fromkeys(OBJECTIVE_FIELDS)
    elif "objective" in changes:
        for module in changes.get("plugin", ()):
            import_plugin(module)
        own = {field.name for field in fields(named(changes["objective"]))}
        given |= {name: None for name in OBJECTIVE_FIELDS if name not in own}
    given |= changes
    if changes.get("objective_options") is not None and "objective" not in changes:
        before = known.get("objective_options") or {}
        given["objective_options"] = before | named_values("objective_options", changes["objective_options"])
    return SelectConfig(**given)
