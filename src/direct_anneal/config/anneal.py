"""The options of `anneal`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from direct_anneal.config.names import ScheduleName, TrackerName
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require, require_device, require_seed
from direct_anneal.config.shared import (
    DATA,
    MACHINE,
    RecordFields,
    device_option,
    max_length_option,
    overwrite_option,
    revision_option,
    subfolder_option,
    track_option,
    trust_option,
)
from direct_anneal.config.types import PathText, Texts
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

LENGTH = "length (give one)"
TRAINING = "training"


@configuration
class AnnealConfig(RecordFields):
    """Options of `anneal`.

    Raises:
        InputError: a value is out of range, or the length is not given once.
    """

    model: PathText = option(
        reads="checkpoint",
        group=DATA,
        metavar="DIR",
        help="checkpoint of the stable phase: directory or hub name",
    )
    revision: str | None = revision_option("result")
    subfolder: str | None = subfolder_option("result")
    data: Texts = option(
        reads="documents", group=DATA, metavar="GLOB", help="the chosen documents, such as RUN/selected.jsonl"
    )
    out: PathText = option(affects="nothing", group=DATA, metavar="DIR", help="directory of the annealed model")
    learning_rate: float = option(group=TRAINING, metavar="X", help="peak learning rate: that of the stable phase")
    schedule: ScheduleName = option(
        default="linear", group=TRAINING, help="shape of the learning rate's fall; all but constant end at zero"
    )
    epochs: float | None = option(
        default=None, group=LENGTH, metavar="E", help="passes over the chosen documents, without those mixed in"
    )
    num_tokens: int | None = option(default=None, group=LENGTH, metavar="B", help="tokens in all")
    warm_up_steps: int = option(
        default=0, group=TRAINING, metavar="N", help="steps of rising learning rate before the schedule starts"
    )
    batch_size: int = option(default=16, group=TRAINING, metavar="N", help="windows per step")
    micro_batch_size: int | None = option(
        default=None,
        unset="the batch size",
        group=TRAINING,
        metavar="N",
        help="windows computed at once, if a whole step does not fit into memory",
    )
    max_length: int | None = max_length_option(TRAINING)
    optimizer_state: Literal["kept", "fresh"] = option(
        default="fresh", group=TRAINING, help="Adam's moments: from the checkpoint's optimizer.pt, or zero"
    )
    mix: Texts = option(
        default=(), reads="documents", group=DATA, metavar="GLOB", help="random documents to mix in (replay)"
    )
    mix_share: float = option(default=0.0, group=DATA, metavar="X", help="share of all tokens that is mixed in")
    weight_decay: float = option(default=0.1, group=TRAINING, metavar="X", help="weight decay of AdamW")
    beta1: float = option(default=0.9, group=TRAINING, metavar="X", help="first moment's decay of AdamW")
    beta2: float = option(default=0.95, group=TRAINING, metavar="X", help="second moment's decay of AdamW")
    clip: float = option(default=1.0, group=TRAINING, metavar="X", help="largest gradient norm")
    seed: int = option(default=0, group=TRAINING, metavar="S", help="random seed: order of documents, dropout")
    device: str = device_option()
    dtype: Literal["float32", "bfloat16"] = option(
        default="float32", group=MACHINE, help="bfloat16 for mixed precision"
    )
    checkpoint_steps: int = option(
        default=500,
        affects="nothing",
        group=MACHINE,
        metavar="N",
        help="steps between checkpoints, from which an interrupted run continues",
    )
    track: TrackerName = track_option(MACHINE)
    keep_optimizer_state: bool = option(
        default=False, affects="nothing", group=MACHINE, help="leave optimizer.pt beside the annealed model"
    )
    trust_remote_code: bool = trust_option("result")
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.num_tokens is None):
            raise InputError(
                subject="the length of the annealing",
                must=f"be given once, by {named('epochs')} or {named('num_tokens')}",
                got=f"got {'none' if self.epochs is None else 'both'}",
            )
        require(self.epochs is None or self.epochs > 0, "epochs", "above 0", self.epochs)
        require(self.num_tokens is None or self.num_tokens > 0, "num_tokens", "above 0", self.num_tokens)
        require(0 < self.learning_rate < 10, "learning_rate", "above 0 and below 10", self.learning_rate)
        for field in ("batch_size", "checkpoint_steps"):
            require(getattr(self, field) >= 1, field, "at least 1", getattr(self, field))
        micro = self.batch_size if self.micro_batch_size is None else self.micro_batch_size
        require(
            1 <= micro <= self.batch_size and self.batch_size % micro == 0,
            "micro_batch_size",
            f"a divisor of {named('batch_size')} {self.batch_size}",
            micro,
        )
        require(0 <= self.mix_share < 1, "mix_share", "in [0, 1)", self.mix_share)
        if self.mix:
            require(self.mix_share > 0, "mix_share", f"above 0 with {named('mix')}", self.mix_share)
        else:
            require(self.mix_share == 0, "mix_share", f"given together with {named('mix')}", self.mix_share)
        for field in ("weight_decay", "warm_up_steps"):
            require(getattr(self, field) >= 0, field, "at least 0", getattr(self, field))
        require_seed(self.seed)
        for field in ("beta1", "beta2"):
            require(0 <= getattr(self, field) < 1, field, "in [0, 1)", getattr(self, field))
        require(self.clip > 0, "clip", "above 0", self.clip)
        require_device(self.device, numbered=False)

    @property
    def defining(self) -> dict[str, Any]:
        """The inputs that the annealed model depends on."""
        incidental = affecting(type(self), "nothing")
        return {name: value for name, value in asdict(self).items() if name not in incidental}
