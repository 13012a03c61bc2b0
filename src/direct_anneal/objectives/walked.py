"""Options of the descent path, for objectives that look at losses along it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from direct_anneal.errors import InputError, option
from direct_anneal.objectives.base import SelectionObjective
from direct_anneal.objectives.inputs import Inputs
from direct_anneal.path import PathConfig, PathLosses


@dataclass(frozen=True, kw_only=True, repr=False)
class WalkOptions(SelectionObjective):
    """Options of every objective that looks at losses along the path: those of `path.PathConfig` with these names."""

    learning_rates: tuple[float, ...] | float = (3e-4, 1e-3, 3e-3)
    max_passes: float = 3.0
    num_folds: int = 3
    scored_ends: str = "whole"
    paths: str = "one"
    num_clusters: int = 4
    walk_replay: float = 0.5
    schedule: str = "linear"
    scored_weights: str = "float"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paths == "none":
            raise InputError(field="paths", must=f"be one, domains or clusters for {self.name}", got="none")
        PathConfig(**self.walk)  # which checks them

    @property
    def walk(self) -> dict[str, Any]:
        """The options of `PathConfig` that are given here."""
        known = {each.name for each in fields(PathConfig)}
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name in known}
        rates = self.learning_rates
        return found | {"learning_rates": rates if isinstance(rates, tuple | list) else (rates,)}

    def walked(self, inputs: Inputs) -> PathLosses:
        """Return losses along the path; options at their defaults stand for those that they were computed with.

        Raises:
            InputError: the path was walked otherwise than these options say, where it is known how, or not at all.
        """
        losses = inputs.path("pool")
        if not losses.names:
            raise InputError(
                subject="the features",
                must="have losses along the path",
                got="but the pool was read for signs of damage alone",
                do=f"run select with {option('objective')} {self.name}",
            )
        known = losses.walk
        defaults = {each.name: each.default for each in fields(self)}
        for name, own in self.walk.items():
            walked = known.get(name, own)
            if own != defaults[name] and own != (tuple(walked) if isinstance(walked, list) else walked):
                raise InputError(
                    field=name,
                    must=f"be {walked}, as the losses were computed with",
                    got=own,
                    do="leave it out, or run select with it",
                )
        return losses
