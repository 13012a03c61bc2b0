"""Batches: token sequences or samples of any kind, and their losses.

B samples of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from direct_anneal.errors import InputError
from direct_anneal.model.batching import IGNORED_LABEL, next_labels, padded_right, side_of
from direct_anneal.model.probes import predictions, require_causal

# Of logits in float32 that are worked on at once: what a core's cache holds, or enough to keep a GPU busy.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 512 << 20}
_CAUSAL_TOKENS = 16
_PROBE_TOKENS = 128  # enough for every layer to show its gradient, cheap enough to check each model

LOSS_FN = "define loss_fn(model, batch) -> losses, of shape (B,), not reduced over the batch"

LossFunction = Callable[[nn.Module, Any], Tensor]
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Losses:
    """The summed losses of a batch, ready to be differentiated.

    Attributes:
        roots: the tensor that differentiation starts from.
        slopes: ∂(Σ_b sums_b)/∂roots, of the same shape.
        sums: (B,) summed loss of each sample, detached.
        num_terms: (B,) how many terms each sum has: predicted tokens, or 1.
    """

    roots: Tensor
    slopes: Tensor
    sums: Tensor
    num_terms: Tensor

    def differentiate(self, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradients of Σ sums, None where a parameter has no part in them."""
        if not self.roots.requires_grad:
            return [None] * len(parameters)
        return torch.autograd.grad(self.roots, parameters, self.slopes, allow_unused=True)


class Batch(Protocol):
    """Samples that flow through the model together."""

    @property
    def size(self) -> int:
        """B."""

    @property
    def num_positions(self) -> int:
        """T, where layers may see batch and positions flattened into one; else 1."""

    def losses(self, model: nn.Module) -> Losses:
        """Return the losses of one forward pass."""

    def predicting(self) -> list[int]:
        """Return the samples that have a loss at all."""

    def alone(self, sample: int) -> Batch:
        """Return a batch of this sample only."""

    def probe(self, sample: int, other: int | None) -> Batch:
        """Return a small batch of two samples, cheap to differentiate exactly.

        Two, so that a layer that mixes up whose activations are whose is found out.
        """


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences with all padding on the right, where a causal model never sees it; loss: next-token nats.

    Attributes:
        ids: (B, T).
        labels: (B, T), −100 where a token is not to be predicted.
        lengths: tokens of each sample.
    """

    ids: Tensor
    labels: Tensor
    lengths: list[int]

    @classmethod
    def pack(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        device: torch.device,
        vocab_size: int | None = None,
    ) -> TokenBatch:
        """Move all padding to the right.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 at padding, on either side; all ones where left out.
            labels: (B, T), −100 where a token is not to be predicted; `input_ids` where left out.
            vocab_size: V; None where the model does not say.

        Raises:
            ValueError: the shapes disagree, or something else than a tensor is given.
            InputError: an id is not in the vocabulary.
        """
        for name, given in (("input_ids", input_ids), ("attention_mask", attention_mask), ("labels", labels)):
            if given is not None and not isinstance(given, Tensor):
                raise ValueError(f"{name} must be a tensor of shape (B, T), got {type(given).__name__}")
        for name, ids in (("input_ids", input_ids), ("labels", labels)):
            if ids is not None and (ids.is_floating_point() or ids.is_complex()):
                raise ValueError(f"{name} must be integers, got {ids.dtype}, which does not hold every token id")
        for name, given in (("attention_mask", attention_mask), ("labels", labels)):
            if given is not None and given.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(given.shape)}, input_ids {tuple(input_ids.shape)}")
        if input_ids.dim() != 2 or not input_ids.numel():
            raise ValueError(f"input_ids must have shape (B, T) and hold tokens, got {tuple(input_ids.shape)}")
        input_ids = input_ids.long().clone()  # tensors of inference mode cannot be differentiated through
        labels = input_ids if labels is None else labels.long()
        lengths = [input_ids.shape[1]] * len(input_ids)
        if attention_mask is not None:
            input_ids, labels, counts = padded_right(input_ids, attention_mask.bool(), labels)
            lengths = counts.tolist()
        if vocab_size is not None:  # on a GPU the look-up would end the process
            _check_in_vocabulary("input_ids", input_ids, vocab_size)
            if labels is not input_ids:
                _check_in_vocabulary("labels", labels, vocab_size, IGNORED_LABEL)
        return cls(input_ids.to(device), labels.to(device), lengths)

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def num_positions(self) -> int:
        return self.ids.shape[1]

    def losses(self, model: nn.Module) -> Losses:
        logits = predictions(model, self.ids)
        targets = next_labels(self.labels)
        nats, slopes = _cross_entropy(logits.detach(), targets, in_place=_is_product(logits))
        return Losses(logits, slopes, nats.sum(1), (targets != IGNORED_LABEL).sum(1))

    def predicting(self) -> list[int]:
        found: list[int] = (self.labels[:, 1:] != IGNORED_LABEL).any(1).nonzero().flatten().tolist()
        return found

    def sides(self, switches: Sequence[int]) -> list[list[int]]:
        """Return the samples between each two lengths at which the model computes otherwise; groups that have any."""
        groups: dict[int, list[int]] = {}
        for place, length in enumerate(self.lengths):
            groups.setdefault(side_of(length, switches), []).append(place)
        return list(groups.values())

    def only(self, samples: list[int]) -> TokenBatch:
        """Return a batch of these samples, as wide as the longest of them."""
        lengths = [self.lengths[sample] for sample in samples]
        return TokenBatch(self.ids[samples, : max(1, *lengths)], self.labels[samples, : max(1, *lengths)], lengths)

    def require_causal(self, model: nn.Module, sample: int) -> None:
        """See that the model predicts each token from those before it, on the beginning of this sample.

        Raises:
            InputError: it does not.
        """
        require_causal(model, self.ids[sample, : min(self.lengths[sample], _CAUSAL_TOKENS)])

    def alone(self, sample: int) -> TokenBatch:
        length = self.lengths[sample]
        one = slice(sample, sample + 1)
        return TokenBatch(self.ids[one, :length], self.labels[one, :length], [length])

    def probe(self, sample: int, other: int | None) -> TokenBatch:
        """Return the beginnings of two samples; a sample alone is joined by its own first half."""
        first = int((self.labels[sample, 1:] != IGNORED_LABEL).nonzero()[0])  # up to here nothing is predicted
        length = min(self.lengths[sample], first + _PROBE_TOKENS)
        rows, ends = [sample, sample if other is None else other], [length, length // 2]
        if other is not None:
            ends[1] = min(self.lengths[other], length)
        inside = torch.arange(length, device=self.ids.device) < torch.tensor(ends, device=self.ids.device)[:, None]
        return TokenBatch(self.ids[rows, :length], self.labels[rows, :length].where(inside, IGNORED_LABEL), ends)


@dataclass(frozen=True)
class SampleBatch:
    """Samples of any kind, under a loss of the caller's.

    Attributes:
        samples: B of them, each as `collate` takes it in a list.
        loss_fn: (model, collated samples) → losses, shape (B,); sample b's may depend on sample b alone.
        collate: joins samples into what `loss_fn` takes.
    """

    samples: Sequence[Any]
    loss_fn: LossFunction
    collate: Collate
    num_positions: int = 1

    @property
    def size(self) -> int:
        return len(self.samples)

    def losses(self, model: nn.Module) -> Losses:
        # A sample's own gradient is nobody's business, and would be left in the caller's tensor.
        batch = tree_map_only(Tensor, Tensor.detach, self.collate(list(self.samples)))
        _require_callable(self.loss_fn, model, batch)
        losses = self.loss_fn(model, batch)
        if not isinstance(losses, Tensor) or losses.shape != (self.size,):
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"loss_fn must return one loss for each of {self.size} samples, got {got}: {LOSS_FN}")
        if not losses.is_floating_point():
            raise ValueError(f"loss_fn must return floating-point losses, got {losses.dtype}: {LOSS_FN}")
        terms = torch.ones(self.size, dtype=torch.int64, device=losses.device)
        return Losses(losses, torch.ones_like(losses), losses.detach(), terms)

    def predicting(self) -> list[int]:
        return list(range(self.size))

    def alone(self, sample: int) -> SampleBatch:
        return SampleBatch([self.samples[sample]], self.loss_fn, self.collate)

    def probe(self, sample: int, other: int | None) -> SampleBatch:
        pair = [self.samples[sample], self.samples[sample if other is None else other]]
        return SampleBatch(pair, self.loss_fn, self.collate)


def _check_in_vocabulary(name: str, ids: Tensor, vocab_size: int, but: int | None = None) -> None:
    """See that ids are known to the model; those on an accelerator are not looked at, which would wait for it.

    Raises:
        InputError: one is not.
    """
    if ids.device.type != "cpu":
        return
    values = ids.numpy()
    values = values if but is None else values[values != but]
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    if least < 0 or most >= vocab_size:
        raise InputError(
            subject=name,
            must=f"be in the model's vocabulary, 0..{vocab_size - 1}",
            got=least if least < 0 else most,
            do="use the tokenizer of the model",
        )


def _require_callable(loss_fn: Any, model: nn.Module, batch: Any) -> None:
    """See that a loss function takes what it will be given."""
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function, got {type(loss_fn).__name__}: {LOSS_FN}")
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # builtins do not say
        return
    try:
        signature.bind(model, batch)
    except TypeError as error:
        raise ValueError(f"loss_fn must take (model, batch), but takes {signature}: {LOSS_FN}") from error


def _is_product(logits: Tensor) -> bool:
    """Tell whether logits are a linear layer's output as it stands, which no backward pass reads.

    A view does not count: writing over it, autograd would replace its node and forget that node's hooks.
    """
    node = logits.grad_fn
    if node is not None and node.name() == "UnsafeViewBackward0":
        node = node.next_functions[0][0]
    plain = logits.is_contiguous() and not logits._is_view()
    return plain and node is not None and node.name() in ("MmBackward0", "AddmmBackward0")


def _cross_entropy(logits: Tensor, targets: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihoods in nats, (B, T) float32 or better, and their slopes in the logits, (B, T, V).

    Both in one pass over the logits, chunk by chunk, in float32: autograd would take several and hold a copy for each.

    Args:
        in_place: slopes are written over the logits, which spares memory that has to be fetched first.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    slopes = logits if in_place else torch.empty_like(logits, memory_format=torch.contiguous_format)
    likelihoods = torch.empty((*targets.shape, 1), dtype=precise, device=logits.device)
    ignored = (targets == IGNORED_LABEL)[..., None]
    places = targets[..., None].masked_fill(ignored, 0)
    rows = max(1, _CHUNK_BYTES.get(logits.device.type, _CHUNK_BYTES["cuda"]) // (4 * logits.shape[-1]))
    parts = (part.flatten(0, 1) for part in (logits, slopes, places, ignored, likelihoods))
    for values, slope, place, left_out, likelihood in zip(*(torch.split(part, rows) for part in parts), strict=True):
        logs = torch.log_softmax(values, dim=-1, dtype=precise)
        torch.gather(logs, 1, place, out=likelihood)
        torch.exp(logs, out=slope)
        # p − 1 of what is right, where p may have been rounded to half precision already.
        slope.scatter_(1, place, torch.expm1(likelihood).to(slope.dtype)).masked_fill_(left_out, 0.0)
    return likelihoods.neg_().masked_fill_(ignored, 0.0)[..., 0], slopes
