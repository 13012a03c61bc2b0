"""Validation documents as batches of windows.

B windows of a batch, T tokens; a document of n predicted tokens weighs as one sample, whatever its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right.

    Attributes:
        ids, labels: (B, T); at padding the window's first token, since another's embedding may be NaN.
        mask: (B, T), 0 at padding.
        documents: (B,), whose window each row is.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    documents: NDArray[np.intp]


def batches(
    documents: Sequence[Tokens], *, max_length: int, batch_tokens: int, labels: Sequence[Tokens] | None = None
) -> list[Batch]:
    """Cut documents into windows of at most `max_length` tokens, and put windows of like length together.

    Args:
        documents: tokens of each.
        max_length: T at most; a window starts anew, so that its first token is not predicted.
        batch_tokens: padded tokens of a batch, at least one window.
        labels: what is predicted in the place of each token; the tokens themselves where left out.
    """
    labels = documents if labels is None else labels
    windows = [
        (document, slice(first, first + max_length))
        for document, tokens in enumerate(documents)
        for first in range(0, len(tokens) - 1, max_length)  # a single token at the end predicts nothing
    ]
    lengths = [len(documents[document][place]) for document, place in windows]
    order = sorted(range(len(windows)), key=lambda window: -lengths[window])
    parts: list[list[int]] = []
    for window in order:
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > batch_tokens:
            parts.append([])
        parts[-1].append(window)
    return [_batch([windows[window] for window in part], documents, labels) for part in parts]


def num_predicted(tokens: Tokens, max_length: int) -> int:
    """n: all tokens but the first of each window."""
    return len(tokens) - -(-len(tokens) // max_length)


def _batch(windows: list[tuple[int, slice]], documents: Sequence[Tokens], labels: Sequence[Tokens]) -> Batch:
    width = max(len(documents[document][place]) for document, place in windows)
    ids = torch.zeros(len(windows), width, dtype=torch.int64)
    targets, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (document, place) in enumerate(windows):
        for tensor, values in ((ids, documents[document][place]), (targets, labels[document][place])):
            tensor[row] = int(documents[document][place.start])
            tensor[row, : len(values)] = torch.from_numpy(values)
        mask[row, : len(documents[document][place])] = 1
    return Batch(ids, targets, mask, np.array([document for document, _ in windows], dtype=np.intp))
