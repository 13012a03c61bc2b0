"""Options of the descent path."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from direct_anneal.config.names import ScheduleName
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require, require_seed
from direct_anneal.config.shared import MACHINE, device_option
from direct_anneal.config.types import Numbers, OptionalPath
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

PATH = "descent path"


@configuration
class PathConfig:
    """The options of the descent path: annealing on the validation set and scoring along it.

    Raises:
        InputError: a value is out of range.
    """

    learning_rates: Numbers = option(
        default=(3e-4, 1e-3, 3e-3),
        group=PATH,
        metavar="X1,X2,...",
        help="peak rates to try; the one with which the first fold, left out, gains most is taken",
    )
    max_passes: float = option(
        default=3.0,
        group=PATH,
        metavar="P",
        help="longest walk, in passes over the validation set; the depth is found within it",
    )
    num_folds: int = option(
        default=3,
        group=PATH,
        metavar="N",
        help="folds; for each a walk on the others tells how deep the left-out fold still gains. 0: no search, one "
        "rate for max_passes",
    )
    scored_ends: Literal["whole", "folds"] = option(
        default="whole",
        group=PATH,
        help="whole: the pool is scored at the end of one walk on all of the validation set; folds: at the end of each "
        "fold's, and averaged. A document of the pool that is in the validation set, too, is scored by folds that did "
        "not see it, either way",
    )
    paths: Literal["one", "domains", "clusters", "none"] = option(
        default="one",
        group=PATH,
        help="one path on the whole validation set, or one for each of its domains, or of clusters of like gradients; "
        "none: none is walked, and the pool is read for signs of damage alone",
    )
    num_clusters: int = option(
        default=4,
        group=PATH,
        metavar="K",
        help="of the validation set, where each has a path; fewer where some are tiny",
    )
    walk_replay: float = option(
        default=0.5,
        group=PATH,
        metavar="X",
        help="share of a walk's tokens that are random documents of the pool. Above 0 a document's drop is what the "
        "validation set adds: its loss after a walk on those documents alone, less that after the walk on both",
    )
    schedule: ScheduleName = option(default="linear", group=PATH, help="how the rate falls")
    warm_up: float = option(default=0.05, group=PATH, metavar="X", help="share of the steps in which the rate rises")
    num_restrained: int = option(
        default=0,
        group=PATH,
        metavar="N",
        help="stiff eigen-directions of the validation loss; a second walk is kept off them, and documents have a cost "
        "in them (docs/path.md)",
    )
    stiff_share: float = option(
        default=0.0,
        group=PATH,
        metavar="X",
        help="share of a restrained step's part in stiff directions that is taken; 0: projected off them",
    )
    scored_weights: Literal["float", "int8"] = option(
        default="float",
        group=PATH,
        help="of linear layers while the pool is scored; int8: rounded to 8 bits, a quarter of the memory on a "
        "cluster's workers. Walks are in float32 either way",
    )
    read_order: bool = option(
        default=True,
        group=PATH,
        help="read the beginning of each document once more with its words shuffled, which tells shuffled text and "
        "lists of words",
    )
    optimizer: OptionalPath = option(
        default=None,
        unset="fresh moments",
        group=PATH,
        metavar="FILE",
        help="optimizer.pt of the checkpoint, whose moments the walk starts with",
    )
    weight_decay: float = option(default=0.0, group=PATH, metavar="X", help="of AdamW")
    beta1: float = option(default=0.9, group=PATH, metavar="X", help="of AdamW")
    beta2: float = option(default=0.95, group=PATH, metavar="X", help="of AdamW")
    clip: float = option(default=1.0, group=PATH, metavar="X", help="largest gradient norm")
    window: int | None = option(
        default=None, unset="the context, at most 512", group=PATH, metavar="T", help="tokens of a training window"
    )
    batch_tokens: int | None = option(
        default=None,
        unset="a 32nd of the validation set, between one window and 16,384",
        group=PATH,
        metavar="N",
        help="tokens of a step",
    )
    seed: int = option(default=0, group=PATH, metavar="S", help="of the order of documents")
    device: str = device_option()
    dtype: Literal["float32", "bfloat16"] = option(
        default="float32", group=MACHINE, help="of forward passes; weights and moments are float32 while walking"
    )
    checkpoint_steps: int = option(
        default=50,
        affects="nothing",
        group=MACHINE,
        metavar="N",
        help="a killed walk goes on from the last of these steps",
    )

    def __post_init__(self) -> None:
        rates = self.learning_rates
        fit = len(rates) and all(0 < rate < 10 for rate in rates)
        require(bool(fit), "learning_rates", "one or more numbers above 0 and below 10", rates)
        require(self.max_passes > 0, "max_passes", "above 0", self.max_passes)
        require(self.num_folds != 1 and self.num_folds >= 0, "num_folds", "0, or at least 2", self.num_folds)
        if self.num_folds == 0 and (len(self.learning_rates) > 1 or self.scored_ends == "folds"):
            raise InputError(
                field="num_folds",
                must="be at least 2 where there is something to find out or to average over them",
                got=0,
                do=f"pass one rate in {named('learning_rates')} and leave {named('scored_ends')} at whole, or more "
                "folds",
            )
        for field in ("warm_up", "beta1", "beta2"):
            require(0 <= getattr(self, field) < 1, field, "in [0, 1)", getattr(self, field))
        require(self.num_clusters >= 2, "num_clusters", "at least 2", self.num_clusters)
        require(0 <= self.walk_replay < 1, "walk_replay", "in [0, 1)", self.walk_replay)
        require(self.num_restrained >= 0, "num_restrained", "at least 0", self.num_restrained)
        require(0 <= self.stiff_share < 1, "stiff_share", "in [0, 1)", self.stiff_share)
        if self.num_restrained and self.scored_weights == "int8":
            raise InputError(
                field="scored_weights",
                must=f"be float with {named('num_restrained')}, which takes gradients",
                got="int8",
            )
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.clip > 0, "clip", "above 0", self.clip)
        require(self.window is None or self.window >= 2, "window", "at least 2", self.window)
        require(self.batch_tokens is None or self.batch_tokens >= 2, "batch_tokens", "at least 2", self.batch_tokens)
        require_seed(self.seed)
        require(self.checkpoint_steps >= 1, "checkpoint_steps", "at least 1", self.checkpoint_steps)

    @property
    def defining(self) -> dict[str, Any]:
        """The inputs that the losses depend on."""
        incidental = affecting(type(self), "nothing")
        if not self.walk_replay:  # as runs have it that knew of none
            incidental = incidental | {"walk_replay"}
        return {name: value for name, value in asdict(self).items() if name not in incidental}
