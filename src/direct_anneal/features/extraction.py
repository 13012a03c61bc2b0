"""From a corpus to a store of features, shard by shard.

n documents of a shard, W windows, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from direct_anneal.corpus import Corpus
from direct_anneal.features.batching import BatchTooLargeError, Window, batches, found_batch_tokens, sketched
from direct_anneal.features.store import FeatureStore, ShardRows
from direct_anneal.gradients import GradientSketcher

_SMALLER_BATCHES = (
    "a batch did not fit into memory: batches were made smaller, by halves, as batches.json beside the features says; "
    "with that --batch-tokens the next run need not try"
)


def extract(
    corpus: Corpus,
    store: FeatureStore,
    build_sketcher: Callable[[], GradientSketcher],
    *,
    max_length: int,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
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
        build_sketcher: called once, and only where something is missing.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch, at least one window; found by itself where left out.
        advance: told the tokens of each batch as it is done, and those of shards that were there; less than zero
            where a shard is begun again.

    Raises:
        InputError: not even one window fits into memory.

    Cost: see `GradientSketcher.sketch`; memory for one shard of 8 n R bytes beside the model.
    """
    missing = store.missing()
    advance(int(corpus.num_tokens.sum() - sum(corpus.num_tokens[store.rows(s)].sum() for s in missing)))
    if not missing:
        return
    sketcher = build_sketcher()
    tokens = store.batch_tokens(batch_tokens) or batch_tokens
    if tokens is None:
        tokens = found_batch_tokens(sketcher, corpus.tokens(int(corpus.num_tokens.argmax()))[:max_length])
    store.keep_batch_tokens(batch_tokens, tokens)
    for shard in missing:
        content = None
        while content is None:
            # The shard anew, not the batch: its bytes must not depend on where in it memory ran out.
            try:
                content = _shard(corpus, store.rows(shard), sketcher, max_length, tokens, advance)
            except BatchTooLargeError as error:
                tokens = error.tokens
                store.keep_batch_tokens(batch_tokens, tokens)
                store.remember([_SMALLER_BATCHES])
        store.write(shard, content)


def windows_of(corpus: Corpus, rows: range, max_length: int) -> list[Window]:
    """The windows of these documents that predict something."""
    windows = [
        Window(document, tokens[first : first + max_length], max(0, int(corpus.num_prompt[row]) - first))
        for document, row in enumerate(rows)
        for tokens in [corpus.tokens(row)]
        for first in range(0, len(tokens), max_length)
    ]
    return [window for window in windows if window.predicts]


def _shard(
    corpus: Corpus,
    rows: range,
    sketcher: GradientSketcher,
    max_length: int,
    batch_tokens: int,
    advance: Callable[[int], object],
) -> ShardRows:
    sums = np.zeros((len(rows), sketcher.projection.sketch_size))
    averaged = sketcher.reduction == "mean"
    done = 0
    losses, predicted = np.zeros(len(rows)), np.zeros(len(rows))
    for batch in batches(windows_of(corpus, rows, max_length), batch_tokens):
        try:
            sketches = sketched(sketcher, batch)
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
    advance(int(corpus.num_tokens[rows.start : rows.stop].sum()) - done)  # windows that predict nothing
    gradients = sums / predicted[:, None] if averaged else sums  # every document predicts at least one token
    norms = np.linalg.norm(gradients, axis=1)
    losses /= predicted
    # Zero is a gradient; NaN and infinity are not, and would spread to everything that they are added to.
    finite = np.isfinite(norms) & np.isfinite(losses)
    scale = np.where(finite & (norms > 0), norms, np.inf)
    units = np.where(finite[:, None], gradients, 0.0) / scale[:, None]
    return ShardRows(
        features=units.astype(np.float16),
        samples=corpus.index.slice(rows.start, len(rows)),
        losses=losses,
        norms=norms,
    )
