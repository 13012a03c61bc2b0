"""The options of `DirectSelector`, which chooses rows of arrays."""

from __future__ import annotations

from typing import Literal

from direct_anneal.config.objective_options import GradientOptions
from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import elbow_option
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named


@configuration
class CountConfig:
    """The size of the selection; exactly one is given."""

    num_selected: int | None = option(default=None, help="number of samples to select")
    fraction: float | None = option(default=None, help="share of the samples to select")


@configuration
class SelectorConfig(GradientOptions, CountConfig):
    """Options of `DirectSelector`.

    Raises:
        InputError: a value is out of range, two exclude each other, or the size is not given once.
    """

    elbow: float | Literal["gap"] = elbow_option()

    def __post_init__(self) -> None:
        require(self.elbow == "gap" or 0 < self.elbow <= 1, "elbow", 'in (0, 1], or "gap"', self.elbow)
        if (self.num_selected is None) == (self.fraction is None):
            raise InputError(
                subject="the size of the selection",
                must=f"be given once, by {named('num_selected')} or {named('fraction')}",
                got=f"got {'none' if self.fraction is None else 'both'}",
            )
        require(self.fraction is None or 0 < self.fraction <= 1, "fraction", "in (0, 1]", self.fraction)
