"""Documents into windows for training: packed, so that every position of every batch predicts something.

Packed rather than one document a window, because that is how the stable phase before it was trained (at a change of
format the loss would move for reasons of its own), and because a document cut off at the window, or padded up to it,
would make the number of tokens depend on the lengths that a selector happens to like.

T tokens of a window, W windows, N documents of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from direct_anneal.gradients import IGNORED_LABEL
from direct_anneal.io.digests import short_digest


class Documents(Protocol):
    """The part of a `Corpus` that packing needs."""

    @property
    def index(self) -> pa.Table:
        """A row per document, with its id."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """One value for each document, (N,)."""

    @property
    def num_prompt(self) -> NDArray[np.int64]:
        """Leading tokens of each that are its prompt, (N,)."""

    def tokens(self, i: int) -> NDArray[np.int64]:
        """Return tokens of document i, (T,)."""


@dataclass(frozen=True)
class Part:
    """One corpus of the mixture.

    Attributes:
        corpus: N documents.
        share: of an epoch's tokens; the first part's is what the others leave, and it is seen whole in each epoch.
    """

    corpus: Documents
    share: float = 0.0


class PackedWindows(Dataset[dict[str, torch.Tensor]]):
    """W windows cut from one endless stream of documents, a separator between them; nothing is padded or dropped.

    The stream is the first part, epoch after epoch, each in an order of its own; among its documents stand those of
    the other parts, as many as their shares ask for, and other ones in each epoch until all have been seen. The order
    is that of hashes of seed, epoch and id, so that it does not depend on how files are cut or named. Attention is not
    masked between the documents of one window, as in the training before it.

    Args:
        parts: at least one.
        num_windows: W.
        window: T.
        separator: token put after each document that does not bring one; None: none is.
        seed: of the order.
        predict_prompts: whether a document's prompt is to be predicted, too.

    Raises:
        ValueError: no part, or shares that leave nothing to the first one.

    Memory: one integer for each document that is seen, as often as it is seen.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        num_windows: int,
        window: int,
        separator: int | None,
        seed: int,
        predict_prompts: bool = True,
    ) -> None:
        shares = [part.share for part in parts[1:]]
        if not parts or min(shares, default=0.0) < 0 or sum(shares) >= 1:
            raise ValueError(
                f"the parts' shares must be at least 0 and leave something to the first part, got {shares}"
            )
        self._corpora = [part.corpus for part in parts]
        self._num_windows = num_windows
        self._window = window
        self._separator = separator
        self._predict_prompts = predict_prompts
        self._lengths: list[NDArray[np.int64]] = [self._lengths_of(corpus) for corpus in self._corpora]
        self.epoch_tokens = int(self._lengths[0].sum())
        self._owner, self._document = self._order(shares, seed)
        lengths = np.concatenate([self._lengths[o][[d]] for o, d in zip(self._owner, self._document, strict=True)])
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return window `index`: input_ids (T,), and labels (T,), the first of which nothing predicts."""
        if not 0 <= index < self._num_windows:
            raise IndexError(f"window {index} of {self._num_windows}")
        start, stop = index * self._window, (index + 1) * self._window
        place = int(np.searchsorted(self._ends, start, side="right"))
        position = int(self._ends[place - 1]) if place else 0
        pieces, prompts = [], []
        while position < stop:
            tokens = self._tokens(place)
            part = slice(max(0, start - position), stop - position)
            pieces.append(tokens[part])
            prompts.append((np.arange(len(tokens)) < self._num_prompt(place))[part])
            position += len(tokens)
            place += 1
        input_ids = torch.from_numpy(np.concatenate(pieces))
        labels = input_ids.masked_fill(torch.from_numpy(np.concatenate(prompts)), IGNORED_LABEL)
        labels[0] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels}

    def seen(self, part: int) -> NDArray[np.int64]:
        """Return the documents of a part that windows reach, as positions in it, each as often as they see it."""
        count = 1 + int(np.searchsorted(self._ends, self._num_windows * self._window))
        found: NDArray[np.int64] = self._document[:count][self._owner[:count] == part]
        return found

    def _tokens(self, place: int) -> NDArray[np.int64]:
        owner, document = int(self._owner[place]), int(self._document[place])
        tokens = self._corpora[owner].tokens(document)
        if len(tokens) < self._lengths[owner][document]:
            assert self._separator is not None
            return np.append(tokens, self._separator)
        return tokens

    def _num_prompt(self, place: int) -> int:
        """Count the leading tokens of the document there that are not to be predicted."""
        if self._predict_prompts:
            return 0
        return int(self._corpora[int(self._owner[place])].num_prompt[int(self._document[place])])

    def _lengths_of(self, corpus: Documents) -> NDArray[np.int64]:
        """Return tokens of each document in the stream, (N,): with the separator where the document brings none."""
        if self._separator is None:
            return corpus.num_tokens
        unseparated = [self._separator not in corpus.tokens(i)[[0, -1]] for i in range(corpus.num_samples)]
        lengths: NDArray[np.int64] = corpus.num_tokens + np.array(unseparated, dtype=np.int64)
        return lengths

    def _order(self, shares: Sequence[float], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """List part and document at each place of the stream, as far as windows reach."""
        ids = [corpus.index["id"].to_pylist() for corpus in self._corpora]
        pending = [_Endless(names, f"{seed}:{part}") for part, names in enumerate(ids)]
        needed, reached, epoch = self._num_windows * self._window, 0, 0
        owners, documents = [], []
        while reached < needed:
            wanted = [self.epoch_tokens] + [self.epoch_tokens * share / (1 - sum(shares)) for share in shares]
            seen = [(0, document) for document in range(len(ids[0]))]
            for part in range(1, len(ids)):
                found = 0
                while found < wanted[part]:
                    document = next(pending[part])
                    seen.append((part, document))
                    found += int(self._lengths[part][document])
            seen.sort(key=lambda place: _hash(f"{seed}:{epoch}:{place[0]}", ids[place[0]][place[1]]))
            owners += [part for part, _ in seen]
            documents += [document for _, document in seen]
            reached += sum(int(self._lengths[part][document]) for part, document in seen)
            epoch += 1
        return np.array(owners, dtype=np.int64), np.array(documents, dtype=np.int64)


class _Endless:
    """The documents of a part, over and over, each time in another order."""

    def __init__(self, ids: list[str], salt: str) -> None:
        self._ids, self._salt = ids, salt
        self._round, self._left = 0, list[int]()

    def __next__(self) -> int:
        if not self._left:
            salt = f"{self._salt}:{self._round}"
            self._left = sorted(range(len(self._ids)), key=lambda i: _hash(salt, self._ids[i]), reverse=True)
            self._round += 1
        return self._left.pop()


def _hash(salt: str, name: str) -> bytes:
    return short_digest(f"{salt}:{name}")
