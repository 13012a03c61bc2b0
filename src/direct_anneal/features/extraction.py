"""From a corpus to a store of features, shard by shard.

n documents of a shard, W windows, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.corpus import Corpus
from direct_anneal.features.store import FeatureStore, ShardRows
from direct_anneal.gradients import GradientSketcher

BATCH_TOKENS = 8192

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class _Window:
    document: int  # position within the shard
    tokens: NDArray[np.int64]


def extract(
    corpus: Corpus,
    store: FeatureStore,
    build_sketcher: Callable[[], GradientSketcher],
    *,
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Compute every shard that the store lacks.

    A document longer than `max_length` is split into windows; its gradient and loss are the means over its windows,
    weighted by their predicted tokens. What a shard holds depends on its documents alone, so that it can be computed
    by anyone, at any time, in any order.

    Args:
        corpus: N documents; the store's rows, in order.
        store: of N rows.
        build_sketcher: called once, and only where something is missing.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch, at least one window.
        advance: told the tokens of each batch as it is done, and those of shards that were there.

    Cost: see `GradientSketcher.sketch`; memory for one shard of 8 n R bytes beside the model.
    """
    missing = store.missing()
    advance(int(corpus.num_tokens.sum() - sum(corpus.num_tokens[store.rows(s)].sum() for s in missing)))
    if not missing:
        return
    sketcher = build_sketcher()
    for shard in missing:
        store.write(shard, _shard(corpus, store.rows(shard), sketcher, max_length, batch_tokens, advance))


def _shard(
    corpus: Corpus,
    rows: range,
    sketcher: GradientSketcher,
    max_length: int,
    batch_tokens: int,
    advance: Callable[[int], object],
) -> ShardRows:
    sums = np.zeros((len(rows), sketcher.projection.sketch_size))
    losses, predicted = np.zeros(len(rows)), np.zeros(len(rows))
    windows = [
        _Window(document, tokens[first : first + max_length])
        for document, row in enumerate(rows)
        for tokens in [corpus.tokens(row)]
        for first in range(0, len(tokens), max_length)
    ]
    for batch in _batches(windows, batch_tokens):
        ids, mask = _padded(batch)
        sketches = sketcher.sketch(ids, mask)
        weights = sketches.num_tokens.cpu().numpy().astype(np.float64)
        values = sketches.values.cpu().numpy().astype(np.float64)
        owners = [window.document for window in batch]
        np.add.at(sums, owners, weights[:, None] * values)
        np.add.at(losses, owners, weights * sketches.losses.cpu().numpy())
        np.add.at(predicted, owners, weights)
        advance(int(mask.sum()))
    means = sums / predicted[:, None]  # a document of the corpus predicts at least one token
    norms = np.linalg.norm(means, axis=1)
    losses /= predicted
    # Zero is a gradient; NaN and infinity are not, and would spread to everything that they are added to.
    finite = np.isfinite(norms) & np.isfinite(losses)
    scale = np.where(finite, norms, np.inf)
    units = np.where(finite[:, None], means, 0.0) / np.maximum(scale, _SMALLEST_NORMAL)[:, None]
    return ShardRows(
        features=units.astype(np.float16),
        samples=corpus.index.slice(rows.start, len(rows)),
        losses=losses,
        norms=norms,
    )


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    """Windows of like length together, longest first: little padding, and memory peaks in the first batch."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda window: -len(window.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _padded(batch: list[_Window]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(batch), len(batch[0].tokens), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(batch):
        ids[row, : len(window.tokens)] = torch.from_numpy(window.tokens)
        mask[row, : len(window.tokens)] = 1
    return ids, mask
