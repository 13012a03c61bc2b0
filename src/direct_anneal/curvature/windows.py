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

NOT_PREDICTED = -100  # what the sketcher takes for it, as transformers does


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right.

    Attributes:
        ids: (B, T); at padding the window's first token, since another's embedding may be NaN.
        labels: (B, T); −100 where nothing is predicted: at padding, in the first place, at a prompt.
        mask: (B, T), 0 at padding.
        documents: (B,), whose window each row is.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    documents: NDArray[np.intp]


def labelled(tokens: Tokens, num_prompt: int) -> Tokens:
    """A document's tokens as what is to be predicted, (T,), its prompt left out."""
    labels = tokens.copy()
    labels[:num_prompt] = NOT_PREDICTED
    return labels


def batches(
    documents: Sequence[Tokens], labels: Sequence[Tokens], *, max_length: int, batch_tokens: int
) -> list[Batch]:
    """Cut documents into windows of at most `max_length` tokens, and put windows of like length together.

    Args:
        documents: tokens of each, (T,).
        labels: what is predicted in the place of each token, (T,); −100 for nothing. A window that predicts nothing
            is left out.
        max_length: T at most; a window starts anew, so that its first token is not predicted.
        batch_tokens: padded tokens of a batch, at least one window.
    """
    windows = [
        (document, slice(first, first + max_length))
        for document, wanted in enumerate(labels)
        for first in range(0, len(wanted), max_length)
        if np.any(wanted[first + 1 : first + max_length] != NOT_PREDICTED)
    ]
    lengths = [len(documents[document][place]) for document, place in windows]
    order = sorted(range(len(windows)), key=lambda window: -lengths[window])
    parts: list[list[int]] = []
    for window in order:
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > batch_tokens:
            parts.append([])
        parts[-1].append(window)
    return [_batch([windows[window] for window in part], documents, labels) for part in parts]


def num_predicted(labels: Tokens, max_length: int) -> int:
    """n: all labels but the first of each window."""
    later = np.arange(len(labels)) % max_length > 0
    return int(np.sum(later & (labels != NOT_PREDICTED)))


def _batch(windows: list[tuple[int, slice]], documents: Sequence[Tokens], labels: Sequence[Tokens]) -> Batch:
    width = max(len(documents[document][place]) for document, place in windows)
    ids = torch.zeros(len(windows), width, dtype=torch.int64)
    targets, mask = torch.full_like(ids, NOT_PREDICTED), torch.zeros_like(ids)
    for row, (document, place) in enumerate(windows):
        tokens = torch.from_numpy(documents[document][place])
        ids[row] = tokens[0]
        ids[row, : len(tokens)] = tokens
        targets[row, 1 : len(tokens)] = torch.from_numpy(labels[document][place][1:])
        mask[row, : len(tokens)] = 1
    return Batch(ids, targets, mask, np.array([document for document, _ in windows], dtype=np.intp))
