"""Losses of documents under a model: forward passes alone, in batches that nobody chooses.

n documents of a shard, B windows of a batch, T tokens, V vocabulary.

A model's numbers depend, in their last bits, on the shape of the batch that they are computed in. So batches are cut
by a rule that knows the shard's documents alone: windows of like length together, a fixed number of padded tokens. The
same shard gives the same bytes on the same machine whoever computes it, at any time, in any order; on other machines
losses agree to rounding (a relative 1e-5 in float32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.model.batching import IGNORED_LABEL, batches, next_labels, padded, windows_of
from direct_anneal.model.lengths import length_switches
from direct_anneal.model.token_losses import token_nats
from direct_anneal.path.damage import HEAD_TOKENS
from direct_anneal.path.order import OPENING_TOKENS

# Padded tokens of a batch. On a CPU more is not faster; a GPU is busy with that many, and twice as many, cut from a
# shard of 1,024 documents, were 5 % to 10 % padding (benchmarks/path.py).
BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
# Least length of a batch's windows, as a share of its longest: in a shard of few documents neighbours differ much. On a
# CPU smaller batches are no slower.
LEAST_SHARE = {"cpu": 0.85, "cuda": 0.0}
FEWEST_BATCH_TOKENS = 256


@dataclass(frozen=True)
class Sums:
    """Losses of n documents, as sums.

    Attributes:
        nats, predicted: over the predicted tokens of each, and how many these are, (n,).
        head, opening: nats over the first `HEAD_TOKENS` and `OPENING_TOKENS`, (n,); NaN where a prompt is among them.
    """

    nats: NDArray[np.float64]
    predicted: NDArray[np.float64]
    head: NDArray[np.float64]
    opening: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Nats a predicted token, (n,); NaN where there is none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: NDArray[np.float64] = self.nats / self.predicted
        return means


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
) -> Sums:
    """Sum the nats of each document's predicted tokens, and count them.

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
    nats, predicted, head, opening = (np.zeros(len(contents)) for _ in range(4))
    windows = windows_of(contents, max_length=max_length, num_prompt=num_prompt)
    first = {window.document: id(window) for window in reversed(windows)}
    device, done = next(model.parameters()).device, 0
    with torch.inference_mode():
        share = LEAST_SHARE.get(device.type, 0.0)
        for batch in batches(windows, batch_tokens, length_switches(model), least_share=share):
            rows = padded(batch)
            targets = next_labels(rows.labels)
            try:
                each = token_nats(model, rows.ids.to(device), targets.to(device))
            except (torch.OutOfMemoryError, MemoryError) as error:
                advance(-done)
                raise OutOfMemoryError(f"{len(batch)} windows of {rows.ids.shape[1]} tokens") from error
            each = each.cpu()
            np.add.at(nats, rows.documents, each.sum(1).numpy())
            np.add.at(predicted, rows.documents, (targets != IGNORED_LABEL).sum(1).numpy().astype(np.float64))
            begins = np.array([first[window.document] == id(window) for window in batch])
            for sums, length in ((head, HEAD_TOKENS), (opening, OPENING_TOKENS)):
                sums[rows.documents[begins]] = each[begins, : length - 1].sum(1).numpy()
            amount = sum(len(window.tokens) for window in batch)
            advance(amount)
            done += amount
    advance(sum(map(len, contents)) - done)
    head[num_prompt > 0] = opening[num_prompt > 0] = np.nan
    return Sums(nats, predicted, head, opening)
