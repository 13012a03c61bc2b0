"""Extraction: from a corpus to a store of features, shard by shard, by any engine.

n documents of a shard, W windows, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from direct_anneal.data import Corpus
from direct_anneal.features.batching import BatchTooLargeError, found_batch_tokens, sketched
from direct_anneal.features.documents import Documents
from direct_anneal.features.ngrams import ngram_shard
from direct_anneal.features.store import FeatureStore, ShardRows
from direct_anneal.gradients import Coverage, GradientSketcher, Sketches
from direct_anneal.model.batching import Window, batches, windows_of
from direct_anneal.model.lengths import length_switches

_SMALLER_BATCHES = (
    "a batch did not fit into memory: batches were made smaller, by halves, as batches.json beside the features says; "
    "with that --batch-tokens the next run need not try"
)


@dataclass
class Extraction:
    """The state that engines share: the store, the corpus and the current batch size.

    Attributes:
        corpus: the documents.
        store: takes the shards.
        max_length: T, tokens of a window.
        advance: told the tokens of what is done.
        asked: padded tokens of a batch that the user asked for, if any.
        batch_tokens: of a batch that is begun now.
        words: takes the n-grams of the same shards; None where they are not wanted beside.
    """

    corpus: Corpus
    store: FeatureStore
    max_length: int
    advance: Callable[[int], object]
    asked: int | None
    batch_tokens: int
    words: FeatureStore | None = None

    def write(self, shard: int, documents: Documents, content: ShardRows) -> None:
        """Commit a shard, and its n-grams while its documents are at hand."""
        self.store.write(shard, content)
        if self.words is not None and not self.words.holds(shard):
            self.words.write(shard, ngram_shard(documents))

    def documents(self, shard: int) -> Documents:
        """Read the documents of a shard."""
        return Documents.of(self.corpus, self.store.rows(shard))

    def shrink(self, batch_tokens: int) -> None:
        """Keep this size, and say so: a larger batch did not fit into memory."""
        self.batch_tokens = min(self.batch_tokens, batch_tokens)
        self.store.keep_batch_tokens(self.asked, self.batch_tokens)
        self.store.remember([_SMALLER_BATCHES])


class Engine(Protocol):
    """Maker of shards, wherever that may be."""

    def find_batch_tokens(self, longest: np.ndarray) -> int:
        """See `found_batch_tokens`."""

    def make(self, extraction: Extraction, shards: Sequence[int]) -> list[int]:
        """Make these shards and commit them to the store, in whatever order.

        Returns:
            those that were begun again, because whoever had begun them was lost.
        """

    def coverage(self) -> Coverage | None:
        """Return the coverage of the parameters; None if every shard was there already."""


class Local:
    """Engine in this process: one shard after the other.

    Args:
        build_sketcher: called only where something is to be made.
    """

    def __init__(self, build_sketcher: Callable[[], GradientSketcher]) -> None:
        self._build_sketcher = build_sketcher
        self._sketcher: GradientSketcher | None = None

    @property
    def sketcher(self) -> GradientSketcher:
        """Built on first use."""
        if self._sketcher is None:
            self._sketcher = self._build_sketcher()
        return self._sketcher

    def find_batch_tokens(self, longest: np.ndarray) -> int:
        return found_batch_tokens(self.sketcher, longest)

    def make(self, extraction: Extraction, shards: Sequence[int]) -> list[int]:
        for shard in shards:
            documents, content = extraction.documents(shard), None
            while content is None:
                # The shard anew, not the batch: its bytes must not depend on where in it memory ran out.
                try:
                    content = shard_rows(
                        documents, self.sketcher, extraction.max_length, extraction.batch_tokens, extraction.advance
                    )
                except BatchTooLargeError as error:
                    extraction.shrink(error.tokens)
            extraction.write(shard, documents, content)
        return []

    def coverage(self) -> Coverage | None:
        return None if self._sketcher is None else self._sketcher.describe()


def extract(
    corpus: Corpus,
    store: FeatureStore,
    engine: Engine,
    *,
    max_length: int,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
    wanted: Callable[[int], bool] = lambda _: True,
    words: FeatureStore | None = None,
) -> list[int]:
    """Compute every shard that the store lacks.

    A document longer than `max_length` is split into windows; its gradient and loss are the means over its windows,
    weighted by their predicted tokens (its gradient the sum, where the sketcher sums). A prompt's tokens are seen, and
    not predicted. What a shard holds depends on its documents alone, so that it can be computed by anyone, at any time,
    in any order. Its bytes depend on the size of batches, too, which the store keeps; what they say does not beyond
    rounding: in float32 a relative 1e-5 of norms and losses, and a step of float16 in a unit row; a model in half
    precision adds the rounding of its own dtype.

    A batch that does not fit into memory is halved, and its shard begun again; the smaller size is kept.

    Args:
        corpus: N documents; the store's rows, in order.
        store: of N rows.
        engine: who makes the shards; asked only where something is missing.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch, at least one window; found by itself where left out.
        advance: told the tokens of each batch or shard as it is done, and those of shards that were there; less than
            zero where a shard is begun again.
        wanted: which shards are to be computed here; all where left out.
        words: of as many rows a shard; takes the n-grams of the shards that are made.

    Returns:
        the shards that were begun again, because a worker or its machine was lost.

    Raises:
        InputError: not even one window fits into memory.

    Cost: see `GradientSketcher.sketch`; memory for one shard of 8 n R bytes beside the model.
    """
    missing = [shard for shard in store.missing() if wanted(shard)]
    advance(int(corpus.num_tokens.sum() - sum(corpus.num_tokens[store.rows(s)].sum() for s in missing)))
    if not missing:
        return []
    tokens = store.batch_tokens(batch_tokens) or batch_tokens
    if tokens is None:
        tokens = engine.find_batch_tokens(corpus.tokens(int(corpus.num_tokens.argmax()))[:max_length])
    store.keep_batch_tokens(batch_tokens, tokens)
    extraction = Extraction(corpus, store, max_length, advance, asked=batch_tokens, batch_tokens=tokens, words=words)
    return engine.make(extraction, missing)


Sketch = Callable[[GradientSketcher, Sequence[list[Window]]], Iterator[Sketches]]


def batches_of(
    documents: Documents, sketcher: GradientSketcher, max_length: int, batch_tokens: int
) -> list[list[Window]]:
    """Return the batches that a shard's documents are sketched in."""
    windows = windows_of(documents.tokens, max_length=max_length, num_prompt=documents.num_prompt)
    return list(batches(windows, batch_tokens, length_switches(sketcher.model)))


def _one_by_one(sketcher: GradientSketcher, batches: Sequence[list[Window]]) -> Iterator[Sketches]:
    return (sketched(sketcher, batch) for batch in batches)


def shard_rows(
    documents: Documents,
    sketcher: GradientSketcher,
    max_length: int,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
    sketch: Sketch = _one_by_one,
) -> ShardRows:
    """Build the rows of one shard.

    Args:
        sketch: gives the sketches of all batches, in order.

    Raises:
        BatchTooLargeError: a batch does not fit into memory; what `advance` was told is taken back.
        InputError: not even one window fits.
    """
    num_documents = len(documents.tokens)
    sums = np.zeros((num_documents, sketcher.projection.sketch_size))
    averaged = sketcher.reduction == "mean"
    done = 0
    losses, predicted = np.zeros(num_documents), np.zeros(num_documents)
    in_batches = batches_of(documents, sketcher, max_length, batch_tokens)
    made = sketch(sketcher, in_batches)
    for batch in in_batches:
        try:
            sketches = next(made)
        except BatchTooLargeError:
            advance(-done)
            raise
        weights = sketches.num_tokens.cpu().numpy().astype(np.float64)
        values = sketches.values.cpu().numpy().astype(np.float64)
        owners = [window.document for window in batch]
        np.add.at(sums, owners, values * weights[:, None] if averaged else values)
        np.add.at(losses, owners, weights * sketches.losses.cpu().numpy())
        np.add.at(predicted, owners, weights)
        amount = sum(len(window.tokens) for window in batch)
        advance(amount)
        done += amount
    advance(documents.num_tokens - done)  # windows that predict nothing
    gradients = sums / predicted[:, None] if averaged else sums  # every document predicts at least one token
    norms = np.linalg.norm(gradients, axis=1)
    losses /= predicted
    # Zero is a gradient; NaN and infinity are not, and would spread to everything that they are added to.
    finite = np.isfinite(norms) & np.isfinite(losses)
    scale = np.where(finite & (norms > 0), norms, np.inf)
    units = np.where(finite[:, None], gradients, 0.0) / scale[:, None]
    return ShardRows(features=units.astype(np.float16), samples=documents.samples, losses=losses, norms=norms)
