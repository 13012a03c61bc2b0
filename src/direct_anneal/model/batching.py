"""Windows, padding and labels: the one place that says which tokens a model sees together, and which it predicts.

B windows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int64]

IGNORED_LABEL = -100  # transformers' and torch's own mark for a position that is not predicted


@dataclass(frozen=True)
class Window:
    """A part of a document.

    Attributes:
        document: its position among those that are cut.
        tokens: shape (T,).
        num_prompt: leading tokens that are not predicted; the first never is.
        labels: shape (T,), what is predicted in the place of each token, −100 for nothing; the tokens after the
            prompt where left out.
    """

    document: int
    tokens: Tokens
    num_prompt: int = 0
    labels: Tokens | None = None

    @property
    def wanted(self) -> Tokens:
        """Labels of every place, shape (T,), −100 where nothing is predicted."""
        first = max(1, self.num_prompt)
        if self.labels is None:
            return labelled(self.tokens, first)
        return labelled(self.labels, first)

    @property
    def predicts(self) -> bool:
        """True if any token is predicted."""
        first = max(1, self.num_prompt)
        if self.labels is None:
            return first < len(self.tokens)
        return bool(np.any(self.labels[first:] != IGNORED_LABEL))


@dataclass(frozen=True)
class Padded:
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
    """Return a document's tokens as what is to be predicted, (T,), its prompt left out."""
    labels = tokens.copy()
    labels[:num_prompt] = IGNORED_LABEL
    return labels


def windows_of(
    documents: Iterable[Tokens],
    *,
    max_length: int,
    num_prompt: Sequence[int] | NDArray[np.int64] | None = None,
    labels: Sequence[Tokens] | None = None,
) -> list[Window]:
    """Cut documents into windows that predict something.

    Args:
        documents: tokens of each, (T,).
        max_length: T at most; a window starts anew, so that its first token is not predicted.
        num_prompt: leading tokens of each that are not predicted; none where left out.
        labels: what is predicted in the place of each token, (T,); −100 for nothing. The tokens where left out.
    """
    windows = [
        Window(
            document,
            tokens[first : first + max_length],
            0 if num_prompt is None else max(0, int(num_prompt[document]) - first),
            None if labels is None else labels[document][first : first + max_length],
        )
        for document, tokens in enumerate(documents)
        for first in range(0, len(tokens), max_length)
    ]
    return [window for window in windows if window.predicts]


def num_predicted(labels: Tokens, max_length: int) -> int:
    """Return n: all labels of a document but the first of each window."""
    later = np.arange(len(labels)) % max_length > 0
    return int(np.sum(later & (labels != IGNORED_LABEL)))


def batches(
    windows: Iterable[Window],
    batch_tokens: int,
    switches: Sequence[int] = (),
    *,
    unseen: int = 0,
    least_share: float = 0.0,
) -> Iterator[list[Window]]:
    """Return windows of like length together, longest first: little padding, and memory peaks in the first batch.

    Args:
        batch_tokens: padded tokens of a batch, at least one window.
        switches: lengths above which the model computes otherwise (`length_switches`): no batch reaches over one.
        unseen: last tokens of each window that are predicted and not seen.
        least_share: of a batch's longest window, the least length of its others. No more than the rest is padding.
    """
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.tokens)):
        if batch:
            longest = len(batch[0].tokens)
            together = side_of(longest - unseen, switches) == side_of(len(window.tokens) - unseen, switches)
            together = together and len(window.tokens) >= least_share * longest
            if not together or (len(batch) + 1) * longest > batch_tokens:
                yield batch
                batch = []
        batch.append(window)
    if batch:
        yield batch


def padded(batch: Sequence[Window]) -> Padded:
    """Return tensors of a batch."""
    width = max(len(window.tokens) for window in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORED_LABEL), torch.zeros_like(ids)
    for row, window in enumerate(batch):
        length = len(window.tokens)
        ids[row] = int(window.tokens[0])
        ids[row, :length] = torch.from_numpy(window.tokens)
        labels[row, :length] = torch.from_numpy(window.wanted)
        mask[row, :length] = 1
    return Padded(ids, labels, mask, np.array([window.document for window in batch], dtype=np.intp))


def padded_right(ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move all padding to the right, where a causal model never sees it.

    Args:
        ids: (B, T).
        mask: (B, T), true at tokens; padding may be on either side.
        labels: (B, T).

    Returns:
        ids and labels, (B, T') where T' is the longest sequence's length, and the lengths, (B,).
    """
    lengths = mask.sum(1)
    width = max(1, int(lengths.max()))
    order = torch.argsort(~mask, dim=1, stable=True)[:, :width]
    inside = torch.arange(width, device=order.device) < lengths[:, None]
    moved = ids.gather(1, order)
    # Padded with the sample's own first token: another's embedding may be NaN, and 0 · NaN is NaN.
    moved = moved.where(inside, moved[:, :1])
    return moved, labels.gather(1, order).where(inside, IGNORED_LABEL), lengths


def next_labels(labels: Tensor) -> Tensor:
    """Return labels in the place of the logits that predict them, (B, T): −100 in the last.

    Labels are shifted, not logits: a slice of those would be copied, and its gradient filled with zeros.
    """
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)


def side_of(length: int, switches: Sequence[int]) -> int:
    """Count the switches below a sequence of this length."""
    return sum(length > switch for switch in switches)
