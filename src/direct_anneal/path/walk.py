"""One walk: the checkpoint annealed on validation text, in a plain loop that gives the same bytes after any kill.

T tokens of a window, D parameters.

Everything a step depends on is the weights, Adam's moments and the step's number: windows come in an order that seed
and step fix, and the model stays in evaluation mode, so that no random number is drawn. The state is written whole
every few steps; a walk that was killed goes on from there and ends with the same bytes (on a CPU, with the same number
of threads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from direct_anneal.errors import InputError, option
from direct_anneal.io.records import RecordError
from direct_anneal.model.batching import IGNORED_LABEL, next_labels
from direct_anneal.model.probes import predictions
from direct_anneal.path.kept import checked_note, keep_tensors
from direct_anneal.path.rounded import Rounded
from direct_anneal.train.packing import PackedWindows
from direct_anneal.train.schedules import ScheduleName, rate_factor

MICRO_BATCH_TOKENS = 4096  # forward and backward at once; a step of more adds gradients up

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a walk.

    Attributes:
        learning_rate: the peak.
        num_steps: until the rate has fallen.
        stop: steps that are taken, at most `num_steps`.
        batch_size: windows of a step.
        schedule, warm_up_steps: of the rate.
        weight_decay, beta1, beta2, clip: of AdamW, and the largest gradient norm.
        checkpoint_steps: the state is written after every so many.
    """

    learning_rate: float
    num_steps: int
    stop: int
    batch_size: int
    schedule: ScheduleName = "linear"
    warm_up_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    checkpoint_steps: int = 50


class Restraint(Protocol):
    """Change of a step before it is taken."""

    def __call__(self, update: Tensors) -> None:
        """Change θ(t+1) − θ(t), by parameter name, in place."""


def walk(
    model: nn.Module,
    windows: PackedWindows,
    steps: Steps,
    *,
    state_file: Path,
    mark: str,
    moments: Mapping[str, tuple[Tensor, Tensor, float]] | None = None,
    visit: Callable[[int], float | None] = lambda _: None,
    until: Callable[[Sequence[tuple[int, float]]], bool] = lambda _: False,
    may_diverge: bool = False,
    restraint: Restraint | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> list[tuple[int, float]]:
    """Move `model` along the path, from the state that was kept or from where it stands.

    Args:
        model: at θ_s, in float32, in evaluation mode; changed in place.
        windows: at least `steps.stop` times `steps.batch_size` of them.
        state_file: where the state is kept, as safetensors.
        mark: a hash of all that the walk depends on; a kept state of another mark is not used.
        moments: by parameter name Adam's two moments and the number of steps behind them; zeros where left out.
        visit: called with the number of steps taken, from 0 on, while the model stands there; what it returns is kept.
        until: whether to end early, asked with all that was visited whenever something is added.
        may_diverge: end where the loss is not finite, with an infinite number for the step that cannot be taken.
        restraint: of each step.
        advance: told 1 for each step, and at once the steps that were taken before.

    Returns:
        (steps taken, what `visit` returned) where it returned a number.

    Raises:
        InputError: the loss is not finite, and was not to diverge.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _adam(parameters, steps)
    taken, visited = _resume(state_file, mark, parameters, optimizer, moments)
    advance(taken)
    if taken == 0 and not visited:
        visited += _noted(0, visit(0))
    while taken < steps.stop and not (visited and visited[-1][0] == taken and until(visited)):
        factor = rate_factor(steps.schedule, taken, steps.num_steps, steps.warm_up_steps)
        for group in optimizer.param_groups:
            group["lr"] = steps.learning_rate * factor
        loss = _accumulate(model, windows, range(taken * steps.batch_size, (taken + 1) * steps.batch_size))
        if not math.isfinite(loss) and may_diverge:
            return [*visited, (taken + 1, math.inf)]
        if not math.isfinite(loss):
            raise InputError(
                subject="the loss on the validation set",
                must="stay finite",
                got=f"but was {loss} after {taken} steps at rate {steps.learning_rate:g}",
                do=f"pass smaller {option('learning_rates')}, or see whether the checkpoint is damaged",
            )
        torch.nn.utils.clip_grad_norm_(parameters.values(), steps.clip)
        _step(optimizer, parameters, restraint)
        taken += 1
        visited += _noted(taken, visit(taken))
        advance(1)
        if taken % steps.checkpoint_steps == 0 and taken < steps.stop:
            _keep(state_file, mark, taken, visited, parameters, optimizer)
    return visited


def keep_weights(path: Path, model: nn.Module, note: Mapping[str, str]) -> None:
    """Write a model's trainable parameters, with some words, as safetensors; there whole or not at all."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    keep_tensors(path, tensors, note)


def kept_note(path: Path, mark: str) -> dict[str, str] | None:
    """Return the words beside kept tensors of this mark; None where there are none that are whole."""
    try:
        note = checked_note(path)
    except (OSError, RecordError):
        return None
    return note if note.get("mark") == mark else None


def put_weights(path: Path, model: nn.Module) -> None:
    """Give a model the parameters that `keep_weights` wrote."""
    with safe_open(str(path), "pt") as file:
        put_tensors(file.get_tensor, model)


def put_tensors(tensor: Callable[[str], Tensor], model: nn.Module) -> None:
    """Give a model the trainable parameters that are found by name; rounded layers round them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensor(name))
        for name, module in model.named_modules():
            if isinstance(module, Rounded):
                module.put(tensor(f"{name}.weight"))


def _adam(parameters: Mapping[str, Tensor], steps: Steps) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=steps.learning_rate,
        betas=(steps.beta1, steps.beta2),
        weight_decay=steps.weight_decay,
    )


def _accumulate(model: nn.Module, windows: PackedWindows, chosen: Sequence[int]) -> float:
    """Add gradients of the mean token loss over these windows to the parameters; return the loss itself."""
    items = [windows[index] for index in chosen]
    ids = torch.stack([item["input_ids"] for item in items])
    labels = torch.stack([item["labels"] for item in items])
    targets = next_labels(labels)
    device = next(model.parameters()).device
    num_predicted = max(1, int((targets != IGNORED_LABEL).sum()))
    total = torch.zeros((), dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    rows = max(1, MICRO_BATCH_TOKENS // ids.shape[1])
    for part, wanted in zip(torch.split(ids, rows), torch.split(targets, rows), strict=True):
        logits = predictions(model, part.to(device))
        precise = torch.promote_types(logits.dtype, torch.float32)
        nats = nn.functional.cross_entropy(
            logits.flatten(0, 1).to(precise), wanted.to(device).flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        torch.autograd.backward(nats / num_predicted)
        total += nats.detach().cpu().double()
    return float(total) / num_predicted


def _step(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], restraint: Restraint | None) -> None:
    if restraint is None:
        optimizer.step()
        return
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer.step()
    with torch.no_grad():
        update = {name: p - before[name] for name, p in parameters.items()}
        restraint(update)
        for name, p in parameters.items():
            p.copy_(before[name] + update[name])


def _noted(taken: int, value: float | None) -> list[tuple[int, float]]:
    return [] if value is None else [(taken, value)]


def _keep(
    path: Path,
    mark: str,
    taken: int,
    visited: Sequence[tuple[int, float]],
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors: Tensors = {}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        tensors |= {
            f"weight.{name}": parameter.detach().cpu().contiguous(),
            f"first.{name}": moments["exp_avg"].cpu().contiguous(),
            f"second.{name}": moments["exp_avg_sq"].cpu().contiguous(),
            f"step.{name}": moments["step"].detach().cpu().clone(),
        }
    told = ",".join(f"{steps}:{value.hex()}" for steps, value in visited)
    keep_tensors(path, tensors, {"mark": mark, "taken": str(taken), "visited": told})


def _resume(
    path: Path,
    mark: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    moments: Mapping[str, tuple[Tensor, Tensor, float]] | None,
) -> tuple[int, list[tuple[int, float]]]:
    """Put back what was kept; the steps that were taken, and what was visited on the way."""
    note = kept_note(path, mark)
    if note is None:
        for name, (first, second, count) in (moments or {}).items():
            _set_moments(optimizer, parameters[name], first, second, torch.tensor(float(count)))
        return 0, []
    with safe_open(str(path), "pt") as file, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            first, second, step = (file.get_tensor(f"{part}.{name}") for part in ("first", "second", "step"))
            _set_moments(optimizer, parameter, first, second, step)
    pairs = (pair.split(":") for pair in note["visited"].split(",") if pair)
    return int(note["taken"]), [(int(steps), float.fromhex(value)) for steps, value in pairs]


def _set_moments(
    optimizer: torch.optim.Optimizer, parameter: Tensor, first: Tensor, second: Tensor, step: Tensor
) -> None:
    optimizer.state[parameter] = {
        "step": step.float().clone(),
        "exp_avg": first.to(parameter.device, parameter.dtype).clone(),
        "exp_avg_sq": second.to(parameter.device, parameter.dtype).clone(),
    }
