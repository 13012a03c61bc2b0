"""Sketches of per-sample gradients of a causal language model.

B samples of a batch, T tokens, R sketch size, D parameters.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from direct_anneal.gradients.capture import Capture, UnexpectedLayoutError, find_layers
from direct_anneal.gradients.projections import DenseGaussian, Projection, TwoSided, Unprojected

ProjectionName = Literal["two-sided", "gaussian"]

IGNORED_LABEL = -100  # transformers' and torch's own mark for a position that is not predicted
FACTOR_SIZE = 32
SKETCH_VERSION = 1  # of the numbers that S consists of: features of another version are not comparable

_PROBE_TOKENS = 128  # enough for every layer to show its gradient, cheap enough to check each model


class SlowPathWarning(UserWarning):
    """Some parameters have no fast path: their gradients are exact, but taken one sample at a time."""


@dataclass(frozen=True)
class Sketches:
    """Sketched gradients of one batch.

    Attributes:
        values: z = S g of the mean loss of each sample, shape (B, R), float32.
        losses: mean negative log-likelihood over predicted tokens, nats, shape (B,), float32.
        norms: ‖z‖, which estimates ‖g‖ (E‖z‖² = ‖g‖²), shape (B,), float32.
        num_tokens: predicted tokens, shape (B,); where 0, sketch, loss and norm are 0.
    """

    values: Tensor
    losses: Tensor
    norms: Tensor
    num_tokens: Tensor


class GradientSketcher:
    """Turns token sequences into sketches of their gradients, for less than a training step.

    Weights are frozen and no weight gradient is formed; each layer's factors are projected as they pass (see
    `gradients.projections`). On its first batch the fast path is checked against plain autograd, parameter by
    parameter, on one sample; what has no fast path, or fails the check, is done exactly one sample at a time, and a
    `SlowPathWarning` says so. Between calls the model is as it came: mode, `requires_grad`, hooks.

    Args:
        model: a causal language model that returns `.logits` of shape (B, T, V) for `input_ids`. Covered are the
            parameters that require gradients when the sketcher is made.
        sketch_size: R.
        projection: "two-sided" (fast) or "gaussian" (the paper's dense matrix, for small models).
        seed: of S.
        factor_size: p of the two-sided projection.

    Raises:
        ValueError: unknown projection, sizes below 1, or no trainable parameter.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> sketcher = GradientSketcher(LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes)), sketch_size=16)
    >>> sketcher.sketch(torch.tensor([[1, 2, 3], [4, 5, 6]])).values.shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        sketch_size: int = 2048,
        projection: ProjectionName = "two-sided",
        seed: int = 0,
        *,
        factor_size: int = FACTOR_SIZE,
    ) -> None:
        if sketch_size < 1 or factor_size < 1:
            raise ValueError(f"sketch_size and factor_size must be at least 1, got {sketch_size} and {factor_size}")
        self.model = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no parameter with requires_grad=True: nothing to sketch")
        self.device = next(iter(self.parameters.values())).device
        # A cache of keys and values would only be thrown away; models that are not transformers' know no such word.
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.projection: Projection
        if projection == "two-sided":
            self.projection = TwoSided(shapes, sketch_size, seed, self.device, factor_size)
        elif projection == "gaussian":
            self.projection = DenseGaussian(shapes, sketch_size, seed, self.device)
        else:
            raise ValueError(f'projection must be "two-sided" or "gaussian", got {projection!r}')
        self._capture = Capture(find_layers(model, {id(p): name for name, p in self.parameters.items()}))
        self._checked = False
        self._announced: tuple[str, ...] = ()

    @property
    def slow_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that go one sample at a time; complete after the first batch."""
        fast = {name for layer in self._capture.layers for name in layer.parameters.values()}
        return tuple(name for name in self.parameters if name not in fast)

    def sketch(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Sketches:
        """Sketch the gradient of each sample's mean loss.

        Args:
            input_ids: (B, T) tokens.
            attention_mask: (B, T), 0 at padding, on either side; all ones where left out.
            labels: (B, T), −100 where a token is not to be predicted; `input_ids` where left out.

        Raises:
            ValueError: the shapes disagree.

        Cost: forward and backward through activations, 4 D FLOPs a token, and the projections. A non-finite gradient
        gives a non-finite sketch of that sample alone.
        """
        with self._borrowed():
            ids, labels, lengths = _pack(input_ids, attention_mask, labels)
            ids, labels = ids.to(self.device), labels.to(self.device)
            if not self._checked:
                self._check(ids, labels, lengths)
            while True:
                try:
                    losses, num_tokens = self._fast(ids, labels, self.projection)
                    break
                except UnexpectedLayoutError as error:
                    self._demote({error.module})
            slow = self.slow_parameters
            if slow and slow != self._announced:
                self._announce(slow)
            for name, sample, gradient in self._slow(ids, labels, lengths, slow):
                self.projection.full(name, gradient[None], sample)
            # Sums were differentiated, not means: half-precision gradients of long samples would underflow.
            values = self.projection.finish() / num_tokens.clamp(min=1)[:, None]
        return Sketches(values, losses, torch.linalg.vector_norm(values, dim=1), num_tokens)

    def _fast(self, ids: Tensor, labels: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
        """Add the gradients of summed losses; mean losses (B,) and predicted tokens (B,)."""
        projection.begin(len(ids))
        with self._capture.into(projection, *ids.shape):
            sums, num_tokens = self._losses(ids, labels)
            if sums.requires_grad:
                torch.autograd.backward(sums.sum())
        return (sums.detach() / num_tokens.clamp(min=1)).float(), num_tokens

    def _losses(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed losses (B,) and predicted tokens (B,)."""
        logits = self.model(input_ids=ids, **self._options).logits
        # The labels are shifted, not the logits: a slice of those would be copied, and its gradient filled with zeros.
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        nats = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        )
        return nats.view(targets.shape).sum(1), (targets != IGNORED_LABEL).sum(1)

    def _slow(
        self, ids: Tensor, labels: Tensor, lengths: Sequence[int], names: Sequence[str]
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Exact gradients of summed losses by plain autograd: parameter, sample, gradient."""
        if not names:
            return
        wanted = [self.parameters[name] for name in names]
        for sample, length in enumerate(lengths):
            if length < 2:
                continue
            for parameter in wanted:
                parameter.requires_grad_(True)
            try:
                sums, _ = self._losses(ids[sample : sample + 1, :length], labels[sample : sample + 1, :length])
                if not sums.requires_grad:  # none of them is used at all
                    return
                gradients = torch.autograd.grad(sums.sum(), wanted, allow_unused=True)
            finally:
                for parameter in wanted:
                    parameter.requires_grad_(False)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    yield name, sample, gradient

    def _check(self, ids: Tensor, labels: Tensor, lengths: Sequence[int]) -> None:
        """Hold every fast gradient against autograd's, on the first two samples that allow it."""
        predicting = (labels[:, 1:] != IGNORED_LABEL).any(1).nonzero().flatten().tolist()
        for sample, other in zip(predicting, [*predicting[1:], None], strict=False):
            verdict = self._wrong_layers(*_probe(ids, labels, lengths, sample, other))
            if verdict is not None:
                self._demote(verdict)
                self._checked = True
                return

    def _wrong_layers(self, ids: Tensor, labels: Tensor, lengths: Sequence[int]) -> set[str] | None:
        """Names of the layers whose fast gradients are not autograd's; None where these are not finite."""
        count = len(ids)
        exact = {name: torch.zeros(count, p.numel(), device=self.device) for name, p in self.parameters.items()}
        for name, sample, gradient in self._slow(ids, labels, lengths, tuple(self.parameters)):
            exact[name][sample] = gradient.flatten()
        totals = sum((g.square().sum(1) for g in exact.values()), torch.zeros(count, device=self.device))
        if not torch.isfinite(totals).all():
            return None
        recorded = Unprojected({name: tuple(p.shape) for name, p in self.parameters.items()}, self.device)
        while True:
            try:
                self._fast(ids, labels, recorded)
                break
            except UnexpectedLayoutError as error:
                self._demote({error.module})
        # √ε: rounding in another order stays far below it, a wrong formula far above, in every precision.
        tolerance = max(torch.finfo(p.dtype).eps for p in (*self.parameters.values(), totals)) ** 0.5
        wrong = set()
        for layer in self._capture.layers:
            for name in layer.parameters.values():
                gaps = (recorded.gradients[name].flatten(1) - exact[name]).norm(dim=1)
                if not (gaps <= tolerance * (exact[name].norm(dim=1) + 1e-3 * totals.sqrt())).all():
                    wrong.add(layer.name)
        return wrong

    def _demote(self, modules: set[str]) -> None:
        """Send these modules' parameters, and those of every module that shares one of them, to the slow path."""
        layers = self._capture.layers
        names: set[str] = set()
        while leaving := {
            layer.name for layer in layers if layer.name in modules or names & set(layer.parameters.values())
        }:
            names.update(name for layer in layers if layer.name in leaving for name in layer.parameters.values())
            layers = [layer for layer in layers if layer.name not in leaving]
        self._capture.layers = layers

    def _announce(self, slow: tuple[str, ...]) -> None:
        self._announced = slow
        entries = {name: parameter.numel() for name, parameter in self.parameters.items()}
        share = sum(entries[name] for name in slow) / sum(entries.values())
        warnings.warn(
            f"{len(slow)} parameters ({share:.1%} of all entries) have no fast path and are differentiated exactly, "
            f"one sample at a time, which is slow: {', '.join(slow[:4])}{', ...' if len(slow) > 4 else ''}",
            SlowPathWarning,
            stacklevel=3,
        )

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """The model in evaluation mode with frozen weights, and then as it came."""
        modes = {module: module.training for module in self.model.modules()}
        trainable = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self.model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for parameter, flag in trainable.items():
                parameter.requires_grad_(flag)
            for module, mode in modes.items():
                module.training = mode


def _probe(
    ids: Tensor, labels: Tensor, lengths: Sequence[int], sample: int, other: int | None
) -> tuple[Tensor, Tensor, list[int]]:
    """The beginnings of two samples as a batch; a sample alone is joined by its own first half.

    Two, so that a layer that mixes up whose activations are whose is found out.
    """
    first = int((labels[sample, 1:] != IGNORED_LABEL).nonzero()[0])  # up to here nothing is predicted
    length = min(lengths[sample], first + _PROBE_TOKENS)
    rows, ends = [sample, sample if other is None else other], [length, length // 2]
    if other is not None:
        ends[1] = min(lengths[other], length)
    inside = torch.arange(length, device=ids.device) < torch.tensor(ends, device=ids.device)[:, None]
    return ids[rows, :length], labels[rows, :length].where(inside, IGNORED_LABEL), ends


def _pack(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor, list[int]]:
    """Tokens and labels with all padding moved to the right, where a causal model never sees it; and the lengths."""
    for name, given in (("attention_mask", attention_mask), ("labels", labels)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, input_ids {tuple(input_ids.shape)}")
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must have shape (B, T) and hold tokens, got {tuple(input_ids.shape)}")
    input_ids = input_ids.long().clone()  # a clone, since tensors of inference mode cannot be differentiated through
    labels = input_ids if labels is None else labels.long()
    if attention_mask is None:
        return input_ids, labels, [input_ids.shape[1]] * len(input_ids)
    mask = attention_mask.bool()
    lengths = mask.sum(1)
    width = max(1, int(lengths.max()))
    order = torch.argsort(~mask, dim=1, stable=True)[:, :width]
    inside = torch.arange(width, device=order.device) < lengths[:, None]
    packed = input_ids.gather(1, order)
    # Padded with the sample's own first token: another's embedding may be NaN, and 0 · NaN is NaN.
    return packed.where(inside, packed[:, :1]), labels.gather(1, order).where(inside, IGNORED_LABEL), lengths.tolist()
