"""The training loop: transformers' Trainer, with our rate, our order of data, and checkpoints that count when whole.

Trainer, because a user who anneals for real has its precision, accumulation, sharding and trackers for nothing; on a
small model its own work is a few per cent of a step. It resumes to the same bytes where everything that a step depends
on is in its checkpoint, or is a function of seed and step alone: so the windows come in order from `PackedWindows`.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from direct_anneal.config.anneal import AnnealConfig
from direct_anneal.errors import InputError, option
from direct_anneal.gradients import check_moments
from direct_anneal.interrupts import held_back, interrupt
from direct_anneal.io.atomic import flush_to_disk
from direct_anneal.io.digests import tree_digests
from direct_anneal.io.records import RecordError, read_sealed, write_record
from direct_anneal.model.saved import OPTIMIZER_FILE
from direct_anneal.tracking import Log
from direct_anneal.train.packing import PackedWindows
from direct_anneal.train.schedules import rate_factor

_WHOLE = "whole"  # record of the files' digests, written last into a checkpoint
_LOG_STEPS = 10
_FRESH = f"save it again, or pass {option('optimizer_state')} fresh"
_SMALLER = f"lower {option('learning_rate')}, or see whether the checkpoint is damaged"


@dataclass(frozen=True)
class Trained:
    """The results of training beside the model.

    Attributes:
        optimizer: its state, as optimizer.pt holds it.
        losses: (step, mean nats a token, rate), every ten steps and at the last one; the mean over the steps since the
            last entry.
    """

    optimizer: dict[str, Any]
    losses: list[tuple[int, float, float]]


def train(
    model: nn.Module,
    windows: PackedWindows,
    config: AnnealConfig,
    *,
    num_steps: int,
    window: int,
    optimizer_state: dict[str, Any] | None,
    directory: Path,
    advance: Callable[[int], object],
    log: Log,
) -> Trained:
    """Train `model` in place for `num_steps` steps, going on from the last whole checkpoint below `directory`.

    The first Ctrl-C (or SIGTERM, in the command) ends it with a checkpoint when the step under way is done, a second
    one at once.

    Args:
        windows: num_steps times batch_size of them.
        window: T.
        optimizer_state: to start from; None: fresh.
        advance: told the tokens of each step, and at once those of the steps that were done before.
        log: gets loss, rate and gradient norm every ten steps.

    Raises:
        InputError: the loss or a weight is not finite, or the state is damaged or of another model.
        KeyboardInterrupt: Ctrl-C was pressed, or SIGTERM came, before the last step.
    """
    checkpoint = _last_whole(directory)
    watch = _Watch(advance, config.batch_size * window, log)
    trainer = _Trainer(
        model=model, args=_arguments(config, num_steps, directory), train_dataset=windows, callbacks=[watch]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.prepare(config, num_steps, optimizer_state, watch.loss)
    if checkpoint is not None:
        watch.loss.go_on(read_sealed(checkpoint / _WHOLE))
        advance(int(checkpoint.name.rpartition("-")[2]) * config.batch_size * window)
    with held_back() as watch.noted:  # Python would raise Ctrl-C in the midst of a step
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if watch.noted and trainer.state.global_step < num_steps:
        raise interrupt(watch.noted[0])
    _check_weights(model)
    losses = [
        (entry["step"], entry["loss"], entry["learning_rate"]) for entry in trainer.state.log_history if "loss" in entry
    ]
    return Trained(optimizer=trainer.optimizer.state_dict(), losses=losses)


class _MeanLoss:
    """Mean loss of the steps since the last entry of the log, which a checkpoint keeps.

    Trainer's own mean begins anew where a run goes on. The sum stays on the device, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | float = 0.0
        self._num_steps = 0

    def add(self, loss: torch.Tensor) -> None:
        """Add a step's loss, or that of a part of its batch as a share of the step's."""
        self._sum = self._sum + loss.detach().double()

    def end_step(self) -> None:
        """Count a step."""
        self._num_steps += 1

    def total(self, step: int) -> float:
        """Return the sum. Waits for the device.

        Raises:
            InputError: it is not finite.
        """
        total = float(self._sum)
        if not math.isfinite(total):
            raise InputError(
                subject="the loss",
                must="stay finite",
                got=f"but was {total} by step {step}",
                do=_SMALLER,
            )
        return total

    def taken(self, step: int) -> float:
        """Return the mean, and begin anew.

        Raises:
            InputError: it is not finite.
        """
        mean = self.total(step) / max(1, self._num_steps)
        self._sum, self._num_steps = 0.0, 0
        return mean

    def kept(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint keeps.

        Raises:
            InputError: the sum is not finite.
        """
        return {"loss_sum": self.total(step), "loss_steps": self._num_steps}

    def go_on(self, kept: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; those of earlier versions kept nothing."""
        self._sum, self._num_steps = float(kept.get("loss_sum", 0.0)), int(kept.get("loss_steps", 0))


class _Trainer(Trainer):  # type: ignore[misc]  # transformers brings no types
    lr_scheduler: Any

    def prepare(
        self, config: AnnealConfig, num_steps: int, optimizer_state: dict[str, Any] | None, loss: _MeanLoss
    ) -> None:
        self._config, self._num_steps, self._state, self._loss = config, num_steps, optimizer_state, loss

    def training_step(self, *args: Any, **given: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **given)
        self._loss.add(loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **given: Any) -> None:
        if "loss" in logs:
            logs["loss"] = self._loss.taken(self.state.global_step)
        super().log(logs, *args, **given)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._state is not None:
            # Moments alone: rate, decay and the like are this run's.
            own = optimizer.state_dict()["param_groups"]
            _check_fits(self._state, optimizer, self.model)
            optimizer.load_state_dict({"state": self._state["state"], "param_groups": own})
        return optimizer

    def create_scheduler(
        self,
        num_training_steps: int,  # noqa: ARG002 (ours is known before)
        optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = self.lr_scheduler
        if scheduler is None:
            config, num_steps = self._config, self._num_steps
            self.lr_scheduler = scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: rate_factor(config.schedule, min(step, num_steps), num_steps, config.warm_up_steps),
            )
        return scheduler


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Watch on a run: tells progress, stops at Ctrl-C and SIGTERM, marks whole checkpoints.

    Attributes:
        noted: signals that were held back.
        loss: of the steps since the last entry of the log.
    """

    def __init__(self, advance: Callable[[int], object], step_tokens: int, log: Log) -> None:
        self._advance, self._step_tokens, self._log = advance, step_tokens, log
        self.noted: list[int] = []
        self.loss = _MeanLoss()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.loss.end_step()
        self._advance(self._step_tokens)
        control.should_log |= state.global_step >= state.max_steps
        control.should_save |= bool(self.noted)
        control.should_training_stop |= bool(self.noted)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        logs = logs or {}
        tracked: dict[str, float] = {
            name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs
        }
        if tracked:
            self._log(tracked, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for path in directory.iterdir():
            flush_to_disk(path)
        write_record(directory / _WHOLE, {"files": _digests(directory), **self.loss.kept(state.global_step)})


class _OfOneDevice(TrainingArguments):  # type: ignore[misc]
    @property
    def n_gpu(self) -> int:
        """At most one: on several Trainer would take a batch for each, and so each window as many times."""
        return min(1, int(super().n_gpu))


def _arguments(config: AnnealConfig, num_steps: int, directory: Path) -> TrainingArguments:
    micro = config.micro_batch_size or config.batch_size
    return _OfOneDevice(
        output_dir=str(directory),
        max_steps=num_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        seed=config.seed,
        use_cpu=config.device == "cpu",
        bf16=config.dtype == "bfloat16",
        dataloader_pin_memory=config.device != "cpu",
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,  # the older is whole while the newer is being written
        logging_steps=_LOG_STEPS,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        log_level="error",
        report_to="none",  # direct_anneal.tracking does it, where the logs outlive the checkpoints
    )


def _last_whole(directory: Path) -> Path | None:
    """Return the newest checkpoint that is what it was when it was written; newer ones are removed."""
    found = [path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if _is_whole(path):
            return path
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        if read_sealed(checkpoint / _WHOLE, {"files": dict})["files"] == _digests(checkpoint):
            return True
    except FileNotFoundError:  # it was being written when the run was killed
        return False
    except (OSError, RecordError):
        pass
    warnings.warn(f"{checkpoint} is damaged, the run goes on from before it", stacklevel=4)
    return False


def _digests(directory: Path) -> dict[str, str | None]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path != directory / _WHOLE)
    return tree_digests({path.relative_to(directory).as_posix(): path for path in files})


def _check_weights(model: nn.Module) -> None:
    """See that a model can be saved: its last step may have gone wrong after its last loss.

    Raises:
        InputError: a weight is not finite.
    """
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(
                subject="all weights", must="be finite", got=f"but {name} is NaN or infinite in the end", do=_SMALLER
            )


def _check_fits(state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """See that a saved state is whole, and of this optimizer's parameters.

    Raises:
        InputError: it is not.
    """
    own = [list(group["params"]) for group in optimizer.param_groups]
    try:
        given = [list(group["params"]) for group in state["param_groups"]]
        entries = [state["state"].get(i) for group in given for i in group]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            subject=OPTIMIZER_FILE,
            must="hold AdamW's state as transformers' Trainer saves it",
            got=f"but {error!s:.80} is missing",
            do=_FRESH,
        ) from error
    if [len(group) for group in given] != [len(group) for group in own]:
        raise InputError(
            subject=OPTIMIZER_FILE,
            must="be of this model",
            got=f"but has {len(entries)} moments in {len(given)} groups where the model has {sum(map(len, own))} "
            f"in {len(own)}",
            do=_FRESH,
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in own for parameter in group]
    for entry, parameter in zip(entries, parameters, strict=True):
        try:
            check_moments(entry, names[id(parameter)], parameter, Path(OPTIMIZER_FILE))
        except ValueError as error:
            raise InputError(f"{error}; {_FRESH}") from error
