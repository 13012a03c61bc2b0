"""Losses of documents under a model: forward passes alone, in batches that nobody chooses.

n documents of a shard, B windows of a batch, T tokens, V vocabulary.

A model's numbers depend, in their last bits, on the shape of the batch that they are computed in. So batches are cut
by a rule that knows the shard's documents alone: windows of like length together, a fixed number of padded tokens. The
same shard gives the same bytes on the same machine whoever computes it, at any time, in any order; on other machines
losses agree to rounding (a relative 1e-5 in float32).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from direct_anneal.model.batching import IGNORED_LABEL, batches, next_labels, padded, windows_of
from direct_anneal.model.lengths import length_switches

# Padded tokens of a batch. On a CPU more was not faster (benchmarks/path.py); a GPU needs that many to be busy.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
FEWEST_BATCH_TOKENS = 256

_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 512 << 20}  # of logits in float32 at once


class OutOfMemoryError(Exception):
    """A batch did not fit into memory."""


def losses_of(
    model: nn.Module,
    contents: Sequence[NDArray[np.int64]],
    num_prompt: NDArray[np.int64],
    *,
    max_length: int,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed nats and number of the predicted tokens of each document, (n,) each.

    A document that is longer than `max_length` is cut into windows, whose nats are added. One that predicts nothing,
    being empty or of a single token, has 0 of both. A loss that is not finite stays as the model gave it.

    Args:
        contents: tokens of each document.
        num_prompt: leading tokens of each that are not predicted.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch, at least one window.
        advance: told the tokens of each batch.

    Raises:
        OutOfMemoryError: a batch does not fit; what `advance` was told is taken back.
    """
    nats, predicted = np.zeros(len(contents)), np.zeros(len(contents))
    done = 0
    with torch.inference_mode():
        windows = windows_of(contents, max_length=max_length, num_prompt=num_prompt)
        for batch in batches(windows, batch_tokens, length_switches(model)):
            rows = padded(batch)
            ids, targets = rows.ids, next_labels(rows.labels)
            try:
                sums = token_nats(model, ids.to(_device(model)), targets.to(_device(model))).sum(1)
            except (torch.OutOfMemoryError, MemoryError) as error:
                advance(-done)
                raise OutOfMemoryError(f"{len(batch)} windows of {ids.shape[1]} tokens") from error
            owners = [window.document for window in batch]
            np.add.at(nats, owners, sums.cpu().numpy())
            np.add.at(predicted, owners, (targets != IGNORED_LABEL).sum(1).numpy().astype(np.float64))
            amount = sum(len(window.tokens) for window in batch)
            advance(amount)
            done += amount
    advance(sum(map(len, contents)) - done)
    return nats, predicted


def token_nats(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood at each place in nats, (B, T) float64, 0 where nothing is predicted.

    Softmax in float32 whatever the model's precision, a chunk of places at a time.

    Args:
        ids: (B, T).
        targets: (B, T), the token that follows; −100 where it is not predicted.
    """
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = model(input_ids=ids, **options).logits
    vocabulary = logits.shape[-1]
    rows = max(1, _CHUNK_BYTES.get(logits.device.type, _CHUNK_BYTES["cuda"]) // (4 * vocabulary))
    precise = torch.promote_types(logits.dtype, torch.float32)
    parts = [
        nn.functional.cross_entropy(part.to(precise), target, ignore_index=IGNORED_LABEL, reduction="none")
        for part, target in zip(
            torch.split(logits.flatten(0, 1), rows), torch.split(targets.flatten(), rows), strict=True
        )
    ]
    return torch.cat(parts).reshape(targets.shape).double()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
