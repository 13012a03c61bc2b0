"""Options of the descent path."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from direct_anneal.config.options import described, require, settle
from direct_anneal.errors import InputError, option
from direct_anneal.train.schedules import ScheduleName

# They change where and how fast the path is walked and scored, not where it leads.
_INCIDENTAL = frozenset({"device", "checkpoint_steps"})


@dataclass(frozen=True, kw_only=True, repr=False)
class PathConfig:
    """How the checkpoint is annealed on the validation set, and how documents are scored along the way.

    Attributes:
        learning_rates: peak rates to try; the one with which the first fold, left out, gains most is taken.
        max_passes: the longest walk, in passes over the validation set; the depth is found within it.
        num_folds: k; for each fold a walk on the others tells how deep the left-out fold still gains. 0: no search, the
            one rate of `learning_rates` is taken for `max_passes` passes.
        scored_ends: "whole": the pool is scored at the end of one walk on all of the validation set; "folds": at the
            end of each fold's walk, and the losses are averaged. A document of the pool whose tokens are also a
            validation document's is scored by folds that did not see it, either way.
        schedule: how the rate falls: "linear", "1-sqrt", "cosine" or "constant".
        warm_up: share of the steps in which the rate rises.
        optimizer: optimizer.pt of the checkpoint, whose moments the walk starts with; fresh ones where left out.
        weight_decay, beta1, beta2, clip: of AdamW, and the largest gradient norm.
        window: tokens of a training window, at most; the model's context, at most 512, where left out.
        batch_tokens: tokens of a step; where left out, a 32nd of the validation set, between one window and 16,384.
        seed: of the order of documents.
        device, dtype: where, and the precision of forward passes; weights and moments are float32 while walking.
        checkpoint_steps: a walk that was killed goes on from the last multiple of this.

    Raises:
        InputError: a value is out of range.
    """

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    max_passes: float = 3.0
    num_folds: int = 3
    scored_ends: Literal["whole", "folds"] = "whole"
    schedule: ScheduleName = "linear"
    warm_up: float = 0.05
    optimizer: str | None = None
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    window: int | None = None
    batch_tokens: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = 50

    def __repr__(self) -> str:
        return described(self)

    def __post_init__(self) -> None:
        settle(self)
        rates = self.learning_rates
        fit = isinstance(rates, tuple | list) and len(rates) and all(0 < float(rate) < 10 for rate in rates)
        require(bool(fit), "learning_rates", "one or more numbers above 0 and below 10", rates)
        object.__setattr__(self, "learning_rates", tuple(float(rate) for rate in rates))
        require(self.max_passes > 0, "max_passes", "above 0", self.max_passes)
        require(self.num_folds != 1 and self.num_folds >= 0, "num_folds", "0, or at least 2", self.num_folds)
        if self.num_folds == 0 and (len(self.learning_rates) > 1 or self.scored_ends == "folds"):
            raise InputError(
                field="num_folds",
                must="be at least 2 where there is something to find out or to average over them",
                got=0,
                do=f"pass one rate in {option('learning_rates')} and leave {option('scored_ends')} at whole, or more "
                "folds",
            )
        for field in ("warm_up", "beta1", "beta2"):
            require(0 <= getattr(self, field) < 1, field, "in [0, 1)", getattr(self, field))
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.clip > 0, "clip", "above 0", self.clip)
        require(self.window is None or self.window >= 2, "window", "at least 2", self.window)
        require(self.batch_tokens is None or self.batch_tokens >= 2, "batch_tokens", "at least 2", self.batch_tokens)
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        require(self.checkpoint_steps >= 1, "checkpoint_steps", "at least 1", self.checkpoint_steps)

    @property
    def defining(self) -> dict[str, Any]:
        """What the losses depend on."""
        return {name: value for name, value in asdict(self).items() if name not in _INCIDENTAL}
