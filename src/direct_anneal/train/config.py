"""The options of `anneal`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from direct_anneal.config.options import described, require, require_device, settle
from direct_anneal.train.schedules import ScheduleName

# These change where and how fast a run goes, and what is kept of it, not the model it gives.
_INCIDENTAL = frozenset({"out", "device", "checkpoint_steps", "track", "overwrite", "keep_optimizer_state"})


@dataclass(frozen=True, kw_only=True, repr=False)
class AnnealConfig:
    """One annealing run, in full.

    Attributes:
        model: checkpoint directory or hub name, as the stable phase left it.
        data: files, directories or globs: the chosen documents.
        out: directory of the annealed model.
        learning_rate: the peak: what the stable phase ran at.
        schedule: "linear", "1-sqrt", "cosine" (each to zero), or "constant".
        epochs, num_tokens: how long; exactly one is given. Epochs count the chosen documents alone, tokens all.
        warm_up_steps: steps of rising rate before the schedule starts.
        batch_size: windows of a step.
        micro_batch_size: windows at once, where a step does not fit into memory; batch_size where left out.
        max_length: T, tokens of a window; the model's context, at most 2048, where left out.
        optimizer_state: "kept": Adam's moments come from the checkpoint's optimizer.pt; "fresh": they start at zero.
        mix: files of random pool to mix in, and mix_share: their share of all tokens.
        weight_decay, beta1, beta2, clip: of AdamW, and the largest gradient norm.
        seed: of the order of documents and of dropout.
        device, dtype: where, and "bfloat16" for mixed precision.
        checkpoint_steps: a run that was killed goes on from the last multiple of this.
        track: "none", or where metrics go as well: "tensorboard", "wandb", "trackio".
        keep_optimizer_state: leave optimizer.pt beside the annealed model.
        text_field, id_field, domain_field, trust_remote_code, overwrite: as for `select`.

    Raises:
        InputError: a value is out of range.
    """

    model: str
    data: tuple[str, ...]
    out: str
    learning_rate: float
    schedule: ScheduleName = "linear"
    epochs: float | None = None
    num_tokens: int | None = None
    warm_up_steps: int = 0
    batch_size: int = 16
    micro_batch_size: int | None = None
    max_length: int | None = None
    optimizer_state: Literal["kept", "fresh"] = "fresh"
    mix: tuple[str, ...] = ()
    mix_share: float = 0.0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = 500
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    keep_optimizer_state: bool = False
    text_field: str | tuple[str, ...] = "text"
    id_field: str | tuple[str, ...] = "id"
    domain_field: str | tuple[str, ...] = "domain"
    trust_remote_code: bool = False
    overwrite: bool = False

    def __repr__(self) -> str:
        return described(self)

    def __post_init__(self) -> None:
        settle(self)
        require((self.epochs is None) != (self.num_tokens is None), "epochs", "given, or --num-tokens", "both or none")
        require(self.epochs is None or self.epochs > 0, "epochs", "above 0", self.epochs)
        require(self.num_tokens is None or self.num_tokens > 0, "num_tokens", "above 0", self.num_tokens)
        require(0 < self.learning_rate < 10, "learning_rate", "above 0 and below 10", self.learning_rate)
        for field in ("batch_size", "checkpoint_steps"):
            require(getattr(self, field) >= 1, field, "at least 1", getattr(self, field))
        micro = self.micro_batch_size or self.batch_size
        require(
            1 <= micro <= self.batch_size and self.batch_size % micro == 0,
            "micro_batch_size",
            f"a divisor of --batch-size {self.batch_size}",
            micro,
        )
        require(bool(self.mix) == (self.mix_share > 0), "mix_share", "given together with --mix", self.mix_share)
        require(0 <= self.mix_share < 1, "mix_share", "in [0, 1)", self.mix_share)
        for field in ("weight_decay", "warm_up_steps", "seed"):
            require(getattr(self, field) >= 0, field, "at least 0", getattr(self, field))
        for field in ("beta1", "beta2"):
            require(0 <= getattr(self, field) < 1, field, "in [0, 1)", getattr(self, field))
        require(self.clip > 0, "clip", "above 0", self.clip)
        require_device(self.device, numbered=False)

    @property
    def defining(self) -> dict[str, Any]:
        """The options that the annealed model depends on."""
        return {name: value for name, value in asdict(self).items() if name not in _INCIDENTAL}
