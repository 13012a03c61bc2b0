"""Many small Llamas trained side by side as one: every weight has a first dimension for the run that it belongs to.

A model of a million parameters leaves a GPU idle: its kernels are shorter than it takes to launch them. E runs in one
batched product fill it, and each run's arithmetic stays its own: gradients, clipping and moments never mix. A run is
that of `direct-anneal anneal` up to float rounding (tests/recipes holds the two against each other).

E runs, B windows of a step, T tokens of a window, V vocabulary, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForCausalLM

from direct_anneal.train.schedules import ScheduleName, rate_factor

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Llama:
    """The architecture of a checkpoint: Llama with tied embeddings, no biases, as many key as query heads."""

    layers: int
    heads: int
    eps: float
    theta: float

    @classmethod
    def of(cls, config: Any) -> Llama:
        """Read a transformers configuration.

        Raises:
            SystemExit: the model is another one than `forward` computes.
        """
        heads = config.num_attention_heads
        fits = config.model_type == "llama" and config.tie_word_embeddings and config.num_key_value_heads == heads
        if not fits or config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise SystemExit("the stacked trainer runs Llama with tied embeddings, without biases and grouped heads")
        rope = getattr(config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
        return cls(config.num_hidden_layers, heads, config.rms_norm_eps, float(theta))


def load(directory: Path, device: str) -> tuple[Llama, Weights]:
    """Weights of one checkpoint, float32, without the first dimension."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    weights = {name: value.detach().to(device) for name, value in model.named_parameters()}
    return Llama.of(model.config), weights


def load_moments(path: Path, weights: Weights) -> tuple[Weights, Weights, float]:
    """Adam's moments as transformers' Trainer saves them, by names of weights, and the steps they are from.

    The Trainer groups what decays before what does not, each in the order of the model.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)["state"]
    order = [name for name in weights if decays(name)] + [name for name in weights if not decays(name)]
    found: list[Weights] = [{}, {}]
    for place, name in enumerate(order):
        for moments, key in zip(found, ("exp_avg", "exp_avg_sq"), strict=True):
            moments[name] = state[place][key].to(weights[name].device, torch.float32)
            if moments[name].shape != weights[name].shape:
                raise SystemExit(f"{path} must be of this model, but differs from it in {name}")
    return found[0], found[1], float(state[0]["step"])


def decays(name: str) -> bool:
    """True if weight decay applies: to all but norms."""
    return "norm" not in name


def stacked(weights: Weights, runs: int) -> Weights:
    """Copies of one model, one for each run."""
    return {name: value[None].repeat(runs, *[1] * value.dim()) for name, value in weights.items()}


def hidden(model: Llama, weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Final hidden states of ids (E, B, T), shape (E, B T, H)."""
    runs, batch, length = ids.shape
    table = weights["model.embed_tokens.weight"]  # (E, V, H)
    vocabulary, width = table.shape[1:]
    offset = torch.arange(runs, device=ids.device)[:, None, None] * vocabulary
    x = functional.embedding(ids + offset, table.reshape(runs * vocabulary, width)).reshape(runs, -1, width)
    cos, sin = _rotation(length, width // model.heads, model.theta, ids.device)
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        y = _norm(x, weights[at + "input_layernorm.weight"], model.eps)
        query, key, value = (
            _linear(y, weights[f"{at}self_attn.{part}_proj.weight"])
            .reshape(runs * batch, length, model.heads, -1)
            .transpose(1, 2)
            for part in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, cos, sin), _rotate(key, cos, sin), value, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(runs, batch * length, width)
        x = x + _linear(mixed, weights[at + "self_attn.o_proj.weight"])
        y = _norm(x, weights[at + "post_attention_layernorm.weight"], model.eps)
        gate = functional.silu(_linear(y, weights[at + "mlp.gate_proj.weight"]))
        x = x + _linear(gate * _linear(y, weights[at + "mlp.up_proj.weight"]), weights[at + "mlp.down_proj.weight"])
    return _norm(x, weights["model.norm.weight"], model.eps)


def token_losses(model: Llama, weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Nats of each token of ids (E, B, T) after the first of its window, shape (E, B, T - 1)."""
    runs, batch, length = ids.shape
    states = hidden(model, weights, ids).reshape(runs, batch, length, -1)[:, :, :-1]
    logits = _linear(states.reshape(runs, batch * (length - 1), -1), weights["model.embed_tokens.weight"]).float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, :, 1:].reshape(-1), reduction="none")
    return losses.reshape(runs, batch, length - 1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of training: the names and defaults of `anneal`."""

    learning_rate: float
    schedule: ScheduleName = "linear"
    warm_up_steps: int = 0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    epsilon: float = 1e-8
    bfloat16: bool = False

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        """Mixed precision where it is asked for."""
        return torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext()


def train(
    model: Llama,
    weights: Weights,
    windows: NDArray[np.integer[Any]],
    training: Training,
    *,
    batch: int,
    moments: tuple[Weights, Weights, float] | None = None,
    report: Callable[[int], object] = lambda _: None,
) -> tuple[Weights, Weights, float]:
    """Train stacked weights in place.

    Args:
        weights: stacked, (E, ...).
        windows: (E, S B, T): the windows of all S steps, in order.
        batch: B.
        moments: Adam's, of one model, that every run starts from; None: zero.
        report: is told each step that is done.

    Returns:
        the moments at the end, stacked, and their steps.
    """
    names = list(weights)
    device = weights[names[0]].device.type
    runs, steps = windows.shape[0], windows.shape[1] // batch
    if moments is None:
        first, second = ({name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2))
        done = 0.0
    else:
        first, second, done = stacked(moments[0], runs), stacked(moments[1], runs), moments[2]
    for name in names:
        weights[name].requires_grad_(True)
    for step in range(steps):
        ids = torch.from_numpy(windows[:, step * batch : (step + 1) * batch].astype(np.int64)).to(device)
        with training.autocast(device):
            loss = token_losses(model, weights, ids).mean((1, 2)).sum()  # each run's mean: no run touches another
        gradients = torch.autograd.grad(loss, [weights[name] for name in names])
        rate = training.learning_rate * rate_factor(training.schedule, step, steps, training.warm_up_steps)
        with torch.no_grad():
            _adamw(weights, first, second, gradients, training, rate, done + step + 1)
        report(step)
    for name in names:
        weights[name].requires_grad_(False)
    return first, second, done + steps


def _adamw(
    weights: Weights,
    first: Weights,
    second: Weights,
    gradients: Sequence[torch.Tensor],
    training: Training,
    rate: float,
    step: float,
) -> None:
    """One step of AdamW, each run's gradient clipped by its own norm."""
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)  # (E,)
    factor = (training.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    correction1, correction2 = 1 - training.beta1**step, 1 - training.beta2**step
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        clipped = gradient * factor.reshape(-1, *[1] * (gradient.dim() - 1))
        first[name].lerp_(clipped, 1 - training.beta1)
        second[name].mul_(training.beta2).addcmul_(clipped, clipped, value=1 - training.beta2)
        if decays(name):
            weight.mul_(1 - rate * training.weight_decay)
        scale = (second[name].sqrt() / math.sqrt(correction2)).add_(training.epsilon)
        weight.addcdiv_(first[name], scale, value=-rate / correction1)


@dataclass(frozen=True)
class Text:
    """One text to score: tokens with what precedes them, and how many leading ones are given, not predicted."""

    tokens: NDArray[np.int64]
    given: int


def text_losses(
    model: Llama,
    weights: Weights,
    texts: Sequence[Text],
    *,
    window: int,
    batch_tokens: int,
    autocast: Callable[[str], AbstractContextManager[Any]] = lambda _: nullcontext(),
) -> NDArray[np.float64]:
    """Nats of the predicted tokens of each text under each run, (E, N); each token is predicted once.

    A text longer than the window is split; each window starts with the last token of the one before it.
    """
    pieces = [
        (i, start, min(start + window, len(text.tokens)))
        for i, text in enumerate(texts)
        for start in range(0, len(text.tokens) - 1, window - 1)
    ]
    first = next(iter(weights.values()))
    runs, device = first.shape[0], first.device.type
    found = np.zeros((runs, len(texts)))
    results = []
    with torch.inference_mode():
        for part in _batches(pieces, max(1, batch_tokens // runs)):
            longest = max(stop - start for _, start, stop in part)
            ids = np.zeros((len(part), longest), dtype=np.int64)
            predicted = np.zeros((len(part), longest - 1), dtype=np.float32)
            for row, (i, start, stop) in enumerate(part):
                ids[row, : stop - start] = texts[i].tokens[start:stop]
                predicted[row, max(0, texts[i].given - start - 1) : stop - start - 1] = 1
            with autocast(device):
                many = torch.from_numpy(ids).to(device)[None].expand(runs, -1, -1)
                losses = token_losses(model, weights, many)
            results.append(((losses * torch.from_numpy(predicted).to(device)).sum(2), [i for i, _, _ in part]))
    for sums, owners in results:  # one wait for the device, at the end
        np.add.at(found.T, owners, sums.double().cpu().numpy().T)
    return found


def _batches(pieces: list[tuple[int, int, int]], tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """Pieces of like length together, at most so many padded tokens at once."""
    ordered = sorted(pieces, key=lambda piece: piece[1] - piece[2])
    start = 0
    while start < len(ordered):
        longest = ordered[start][2] - ordered[start][1]
        stop = start + max(1, tokens // longest)
        yield ordered[start:stop]
        start = stop


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (E, N, I) times weights (E, O, I)."""
    return torch.bmm(x, weight.transpose(1, 2).to(x.dtype))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight[:, None]).to(x.dtype)


def _rotation(length: int, size: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = theta ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * inverse
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    return (x * cos + torch.cat([-other, one], -1) * sin).to(x.dtype)
