"""A run's configuration back from its marker, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from direct_anneal.config.objective import ObjectiveConfig, named
from direct_anneal.config.objective_options import OBJECTIVE_FIELDS
from direct_anneal.config.select import SelectConfig, import_plugin
from direct_anneal.curvature import PAPER_SHARE

_SIZES = ("num_samples", "num_tokens", "fraction")
# Defaults that hang on another option, as the run settled them: they give way where that option changes.
_DEPENDENT: dict[str, dict[str, Any]] = {
    "objective": {
        "target_scale": None,
        "filter": None,
        "damping": None,
        "filter_curvature": None,
        "gradients": None,
        "ngram_weight": None,
        "budget_ratio": None,
        "objective_options": None,
    },
    "filter": {"damping": None, "filter_curvature": None, "ngram_weight": None},
    "filter_curvature": {"ngram_weight": None},
    "gradients": {"ngram_weight": None},
    "curvature": {"num_eigenpairs": None, "filter_curvature": None, "ngram_weight": None},
    "elbow": {"num_stiff": None},
    "num_stiff": {"elbow": PAPER_SHARE},
}


def recorded_config(known: Mapping[str, Any], changes: Mapping[str, Any]) -> SelectConfig:
    """The configuration of a run with changes; another way to give the size replaces the run's own.

    Raises:
        InputError: a value cannot be, or none gives the size.
    """
    given = dict(known)
    if any(changes.get(size) is not None for size in _SIZES):
        given |= dict.fromkeys(_SIZES)
    for option, dependent in _DEPENDENT.items():
        if option in changes:
            given |= {name: default for name, default in dependent.items() if name not in changes}
    if isinstance(changes.get("objective"), ObjectiveConfig):
        given |= dict.fromkeys(OBJECTIVE_FIELDS)
    elif "objective" in changes:
        for module in changes.get("plugin", ()):
            import_plugin(module)
        own = {field.name for field in fields(named(changes["objective"]))}
        given |= {name: None for name in OBJECTIVE_FIELDS if name not in own}
    given |= changes
    return SelectConfig(**given)
