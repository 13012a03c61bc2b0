"""Sketches of per-sample gradients.

B samples of a batch, T tokens, R sketch size, D parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from direct_anneal.config.names import SKETCH_SIZE
from direct_anneal.config.names import ProjectionName as ProjectionName
from direct_anneal.config.names import Reduction as Reduction
from direct_anneal.gradients.batches import LOSS_FN, Batch, Collate, LossFunction, SampleBatch, TokenBatch
from direct_anneal.gradients.coverage import EXCLUDED, SLOW, Coverage
from direct_anneal.gradients.fsdp import differentiate, is_sharded, of_the_first, reshard, whole
from direct_anneal.gradients.hooks import Capture, UnexpectedLayoutError, find_layers
from direct_anneal.gradients.preconditioning import Preconditioned
from direct_anneal.gradients.projections import DenseGaussian, GivenRows, Projection, TwoSided
from direct_anneal.model.borrowing import in_evaluation_mode
from direct_anneal.model.lengths import length_switches, longest_alike
from direct_anneal.model.probes import known_tokens

FACTOR_SIZE = 64
SKETCH_VERSION = 3  # of the numbers that S consists of: features of another version are not comparable

_CHECKING_FACTOR_SIZE = 8  # a wrong gradient differs in 64 random combinations as surely as in all of its entries


class SlowPathWarning(UserWarning):
    """Some parameters have no fast path: their gradients are exact, but taken one sample at a time."""


@dataclass(frozen=True)
class Sketches:
    """Sketched gradients of one batch.

    Attributes:
        values: z = S g of each sample's mean (or summed) loss, shape (B, R), float32.
        losses: mean negative log-likelihood over predicted tokens, nats, shape (B,), float32; or what `loss_fn` gave.
        norms: ‖z‖, which estimates ‖g‖ (E‖z‖² = ‖g‖²), shape (B,), float32.
        num_tokens: predicted tokens, shape (B,); where 0, sketch, loss and norm are 0. With a `loss_fn`: ones.
    """

    values: Tensor
    losses: Tensor
    norms: Tensor
    num_tokens: Tensor

    def __repr__(self) -> str:
        size, sketch_size = self.values.shape
        loss = float(self.losses.mean()) if size else float("nan")
        return f"Sketches({size} samples, R={sketch_size}, mean loss {loss:.4g})"


class GradientSketcher:
    """Sketcher of samples' gradients, for less than a training step.

    Weights are frozen and no weight gradient is formed; each layer's factors are projected as they pass (see
    `gradients.projections`). On its first batch the fast path is checked against plain autograd, parameter by
    parameter, on two samples; what has no fast path, or fails the check, is done exactly one sample at a time, and a
    `SlowPathWarning` says so. Between calls the model is as it came: mode, `requires_grad`, hooks.

    A model under FSDP (`fully_shard`) needs a fast path for all that is covered. Every process makes the sketcher, and
    calls it as often as the others, with the same batch or one of its own; each gets the sketches of its own.

    Args:
        model: for `sketch`, a causal language model that returns `.logits` of shape (B, T, V) for `input_ids`; for
            `sketch_samples`, any module. Covered are the parameters that require gradients when the sketcher is made.
        sketch_size: R.
        projection: "two-sided" (fast), "gaussian" (the paper's dense matrix, for small models), or S itself, (R, D),
            parameters in the order of `named_parameters`, each flat: sketches are exact inner products then, and
            `sketch_size` and `seed` are not looked at.
        seed: of S.
        factor_size: p of the two-sided projection.
        reduction: "mean" or "sum" of the losses of a sample's predicted tokens.
        parameters: patterns as the shell's, of the names of the parameters to cover ("*.mlp.*"); all where left out.
        scales: a factor for every entry of each covered parameter's gradient, by name (`adam_scales`).

    Raises:
        ValueError: unknown projection or reduction, sizes below 1, no trainable parameter, a pattern without a match,
            or a scale that is missing.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> sketcher = GradientSketcher(LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes)), sketch_size=16)
    >>> sketcher.sketch(torch.tensor([[1, 2, 3], [4, 5, 6]])).values.shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        sketch_size: int = SKETCH_SIZE,
        projection: ProjectionName | Tensor = "two-sided",
        seed: int = 0,
        *,
        factor_size: int = FACTOR_SIZE,
        reduction: Reduction = "mean",
        parameters: Sequence[str] | None = None,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        if sketch_size < 1 or factor_size < 1:
            raise ValueError(f"sketch_size and factor_size must be at least 1, got {sketch_size} and {factor_size}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        self.model = model
        self.reduction = reduction
        self.parameters = _chosen({name: p for name, p in model.named_parameters() if p.requires_grad}, parameters)
        self.device = next(iter(self.parameters.values())).device
        self._sharded = is_sharded(model.parameters())
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.projection: Projection
        if isinstance(projection, Tensor):
            self.projection = GivenRows(shapes, projection)
        elif projection == "two-sided":
            self.projection = TwoSided(shapes, sketch_size, seed, self.device, factor_size)
        elif projection == "gaussian":
            self.projection = DenseGaussian(shapes, sketch_size, seed, self.device)
        else:
            raise ValueError(f'projection must be "two-sided" or "gaussian", got {projection!r}')
        if scales is not None:
            self.projection = Preconditioned(self.projection, scales)
        names = {id(p): name for name, p in self.parameters.items()}
        self._capture = Capture(find_layers(model, names, experts=self.projection.takes_experts))
        self._checked = False
        self._squared_norms: dict[str, float] = {}
        self._announced: tuple[str, ...] = ()

    def __repr__(self) -> str:
        entries = sum(parameter.numel() for parameter in self.parameters.values())
        kind, sketch_size = type(self.projection).__name__, self.projection.sketch_size
        return (
            f"GradientSketcher({type(self.model).__name__}, {len(self.parameters)} parameters of {entries:,} entries, "
            f"{kind} to {sketch_size})"
        )

    @property
    def slow_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that go one sample at a time; complete after the first batch."""
        fast = {name for layer in self._capture.layers for name in layer.parameters.values()}
        return tuple(name for name in self.parameters if name not in fast)

    def describe(self) -> Coverage:
        """Return the coverage of the parameters, with shares of the gradient after the first batch."""
        kinds: dict[str, list[str]] = {}
        for layer in self._capture.layers:
            for name in layer.parameters.values():
                kinds.setdefault(name, []).append(layer.kind)
        ways = {
            name: " + ".join(dict.fromkeys(kinds.get(name, [SLOW]))) if name in self.parameters else EXCLUDED
            for name, _ in self.model.named_parameters()
        }
        entries = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return Coverage.of(ways, entries, self._squared_norms)

    def sketch(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Sketches:
        """Sketch the gradient of each sequence's mean (or summed) next-token loss.

        Args:
            input_ids: (B, T) tokens.
            attention_mask: (B, T), 0 at padding, on either side; all ones where left out.
            labels: (B, T), −100 where a token is not to be predicted; `input_ids` where left out.

        Raises:
            ValueError: the shapes disagree; or a parameter of a sharded model has no fast path.
            InputError: an id is not in the model's vocabulary.

        Cost: forward and backward through activations, 4 D FLOPs a token, and the projections. A non-finite gradient
        gives a non-finite sketch of that sample alone.
        """
        batch = TokenBatch.pack(input_ids, attention_mask, labels, self.device, known_tokens(self.model))
        alike = longest_alike(self.model)
        if alike is not None and max(batch.lengths) > alike:
            raise ValueError(
                f"sequences must be at most {alike} tokens long, got {max(batch.lengths)}: above, this model's rotary "
                "frequencies follow the longest of the batch, and a sample's gradient its neighbours"
            )
        sides = batch.sides(length_switches(self.model))
        if len(sides) == 1:
            return self._sketch(batch)
        if self._sharded:
            raise ValueError(
                f"sequences of one batch must lie on one side of {length_switches(self.model)} tokens, where a sharded "
                "model's rotary frequencies change: give them apart"
            )
        return _joined([(places, self._sketch(batch.only(places))) for places in sides], batch.size)

    def sketch_samples(
        self, samples: Sequence[Any], loss_fn: LossFunction, collate: Collate = default_collate
    ) -> Sketches:
        """Sketch the gradient of each sample's loss, for any module and any loss.

        Args:
            samples: B of them, of whatever kind; moved to the model's device by `loss_fn`, if need be.
            loss_fn: loss_fn(model, batch) → losses, shape (B,), of any floating-point precision, differentiable and not
                reduced; `batch` is what `collate` gives, and each loss may depend on its own sample alone.
            collate: joins a list of samples into what `loss_fn` takes; torch's own where left out.

        Raises:
            ValueError: no samples, or `loss_fn` returned something else.

        Cost: as `sketch` for linear layers, embeddings and norms; one sample at a time for every other module.
        """
        if not len(samples):
            raise ValueError("samples must hold at least one sample")
        return self._sketch(SampleBatch(samples, loss_fn, collate))

    def check(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Check the fast path against autograd on these sequences, and not on the first batch; as in `sketch`."""
        with self._borrowed():
            self._check(TokenBatch.pack(input_ids, attention_mask, None, self.device, known_tokens(self.model)))

    def _sketch(self, batch: Batch) -> Sketches:
        with self._borrowed():
            if not self._checked:
                self._check(batch)
            sums, num_terms = self._fast(batch, self.projection)
            slow = self.slow_parameters
            if slow and self._sharded:
                raise ValueError(
                    f"every covered parameter of a sharded model needs a fast path, but {len(slow)} have none "
                    f"({', '.join(slow[:4])}): leave them out by `parameters`"
                )
            if slow and slow != self._announced:
                self._announce(slow)
            for sample, gradients in self._exact(batch, slow):
                for name, gradient in gradients.items():
                    self.projection.full(name, gradient[None], sample)
            values = self.projection.finish()
        # Sums were differentiated, not means: half-precision gradients of long samples would underflow.
        divisors = num_terms.clamp(min=1)
        if self.reduction == "mean":
            values = values / divisors[:, None]
        return Sketches(values, (sums / divisors).float(), torch.linalg.vector_norm(values, dim=1), num_terms)

    def _fast(self, batch: Batch, projection: Projection) -> tuple[Tensor, Tensor]:
        """Add the gradients of summed losses; those sums and their numbers of terms, (B,) each."""
        while True:
            projection.begin(batch.size)
            try:
                with self._capture.into(projection, batch.size, batch.num_positions):
                    losses = batch.losses(self.model)
                    if losses.roots.requires_grad:
                        torch.autograd.backward(losses.roots, losses.slopes)
                return losses.sums, losses.num_terms
            except UnexpectedLayoutError as error:
                self._demote({error.module})

    def _exact(self, batch: Batch, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Return gradients of summed losses by plain autograd, sample by sample; parameters without a part are left
        out.
        """
        if not names:
            return
        parameters = dict(self.model.named_parameters())
        wanted = [parameters[name] for name in names]
        for sample in batch.predicting():
            for parameter in wanted:
                parameter.requires_grad_(True)
            try:
                losses = batch.alone(sample).losses(self.model)
                gradients: Sequence[Tensor | None]
                if self._sharded:
                    gradients = differentiate(losses.roots, losses.slopes, wanted)
                else:
                    gradients = losses.differentiate(wanted)
            finally:
                for parameter in wanted:
                    parameter.requires_grad_(False)
            yield sample, {name: g for name, g in zip(names, gradients, strict=True) if g is not None}

    def _check(self, batch: Batch) -> None:
        """Hold every fast gradient against autograd's, on the first two samples that allow it."""
        if self._sharded:  # autograd's gradients are then means over all processes
            batch = of_the_first(batch, self.device)
        predicting = batch.predicting()
        if predicting and isinstance(batch, TokenBatch):
            batch.require_causal(self.model, predicting[0])
            if self._sharded:
                reshard(self.model)
        for sample, other in zip(predicting, [*predicting[1:], None], strict=False):
            verdict = self._wrong_layers(batch.probe(sample, other))
            if verdict is not None:
                self._demote(verdict)
                self._checked = True
                return

    def _wrong_layers(self, batch: Batch) -> set[str] | None:
        """Return names of the layers whose fast gradients are not autograd's; None where these are not finite.

        Compared are small two-sided sketches of each parameter's gradient; memory for one sample's gradients.
        """
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        exact, fast = (TwoSided(shapes, 1, 0, self.device, _CHECKING_FACTOR_SIZE) for _ in range(2))
        exact.begin(batch.size)
        everything = [name for name, parameter in self.model.named_parameters() if parameter.is_floating_point()]
        squares = dict.fromkeys(everything, 0.0)
        for sample, gradients in self._exact(batch, everything):
            norms: dict[str, float] = {}
            for name, part in gradients.items():
                gradient = whole(part)
                norms[name] = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
                if name in shapes:
                    exact.full(name, gradient[None], sample)
            total = sum(norm**2 for norm in norms.values())
            for name, norm in norms.items():
                squares[name] += norm**2 / total if total > 0 else 0.0
        if not self._sharded and not any(squares.values()) and isinstance(batch, SampleBatch):
            losses = batch.losses(self.model)
            unmoved = (losses.sums != 0) & torch.isfinite(losses.sums)  # a NaN may come from anything
            if not losses.roots.requires_grad and bool(unmoved.any()):
                raise ValueError(
                    "loss_fn must return losses that depend on the model's parameters, but none of them has a "
                    f"gradient: do not detach, nor compute under no_grad; {LOSS_FN}"
                )
        totals = exact.squared_norms()
        if not torch.isfinite(totals).all():
            return None
        self._squared_norms = squares
        self._fast(batch, fast)
        # √ε: rounding in another order stays far below it, a wrong formula far above, in every precision.
        tolerance = max(torch.finfo(p.dtype).eps for p in (*self.parameters.values(), totals)) ** 0.5
        wrong = set()
        for layer in self._capture.layers:
            for name in layer.parameters.values():
                right = exact.part(name)
                gaps = (fast.part(name) - right).norm(dim=1)
                if not (gaps <= tolerance * (right.norm(dim=1) + 1e-3 * totals.sqrt())).all():
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
            stacklevel=4,
        )

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Yield with the model in evaluation mode and its weights frozen, and give it back as it came."""
        trainable = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            with in_evaluation_mode(self.model), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for parameter, flag in trainable.items():
                parameter.requires_grad_(flag)


def _joined(parts: Sequence[tuple[list[int], Sketches]], size: int) -> Sketches:
    """Return sketches of parts of a batch, each with its places, as of the whole."""
    order = torch.tensor([place for places, _ in parts for place in places])
    back = torch.empty(size, dtype=torch.int64)
    back[order] = torch.arange(size)

    def joined(name: str) -> Tensor:
        whole = torch.cat([getattr(sketches, name) for _, sketches in parts])
        return whole[back.to(whole.device)]

    return Sketches(joined("values"), joined("losses"), joined("norms"), joined("num_tokens"))


def _chosen(trainable: dict[str, Tensor], patterns: Sequence[str] | None) -> dict[str, Tensor]:
    if not trainable:
        raise ValueError("the model has no parameter with requires_grad=True: nothing to sketch")
    if patterns is None:
        return trainable
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise ValueError(
                f"every pattern must match a trainable parameter, but {pattern!r} matches none; there are, for "
                f"example, {', '.join(list(trainable)[:3])}"
            )
    chosen = {name: p for name, p in trainable.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        raise ValueError("parameters must hold at least one pattern, or be left out for all parameters")
    return chosen
