"""Clusters of the validation set: documents that pull the weights the same way at the checkpoint.

M validation documents, k clusters, R sketch size.

To first order a walk on some documents lowers document m's loss by the inner product of m's gradient with theirs. So
documents that should share a path are those whose gradients are alike. All gradients of one target have much in common
(its format above all), and every path has that; it is taken out before they are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import batches, padded, windows_of
from direct_anneal.model.lengths import length_switches
from direct_anneal.path.documents import Texts
from direct_anneal.path.scoring import BATCH_TOKENS

SKETCH_SIZE = 1024
_STARTS = 8
_ROUNDS = 50
_SMALLEST = 4  # a cluster below this part of an even share joins others

Float = NDArray[np.float64]


def clusters_of(
    model: nn.Module,
    texts: Texts,
    count: int,
    *,
    max_length: int,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> NDArray[np.int64]:
    """Return the cluster of each document, (M,): 0 the largest, and fewer than `count` where some would be tiny.

    They depend on ids, documents and weights, not on the order that documents come in.

    Args:
        model: at θ_s, in evaluation mode.
        count: k.
        max_length: T, tokens of a window.
        batch_tokens: padded tokens of a batch; changes rounding alone. A fixed number where left out.
        advance: told the tokens of each batch.

    Cost: one gradient of each document, and k-means in memory, O(8 · 50 M k R).
    """
    order = np.argsort(np.array(texts.ids, dtype=object), kind="stable")
    device = next(model.parameters()).device.type
    gradients = mean_gradients(
        model, texts.take(order), max_length, BATCH_TOKENS[device] if batch_tokens is None else batch_tokens, advance
    )
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = alike(gradients, count)
    return labels


def mean_gradients(
    model: nn.Module, texts: Texts, max_length: int, batch_tokens: int, advance: Callable[[int], object]
) -> Float:
    """Return sketched gradients of each document's mean token loss, (M, R); zeros where nothing is predicted."""
    sketcher = GradientSketcher(model, SKETCH_SIZE, reduction="sum")
    sums, predicted = np.zeros((texts.num_samples, SKETCH_SIZE)), np.zeros(texts.num_samples)
    windows = windows_of(texts.contents, max_length=max_length, num_prompt=texts.num_prompt)
    for batch in batches(windows, batch_tokens, length_switches(model)):
        rows = padded(batch)
        sketches = sketcher.sketch(rows.ids, rows.mask, rows.labels)
        np.add.at(sums, rows.documents, sketches.values.cpu().numpy().astype(np.float64))
        np.add.at(predicted, rows.documents, sketches.num_tokens.cpu().numpy().astype(np.float64))
        advance(sum(len(window.tokens) for window in batch))
    return np.asarray(sums / np.maximum(predicted, 1.0)[:, None])


def alike(gradients: Float, count: int) -> NDArray[np.int64]:
    """Cluster by spherical k-means what gradients' directions do not share; labels (M,), the largest cluster first.

    The best of 8 starts, each drawn as k-means++ draws (Arthur and Vassilvitskii, 2007), from a fixed seed. A cluster
    below a quarter of an even share is dissolved, the smallest first, and its documents join the next best.

    Args:
        gradients: (M, R).
        count: k; fewer where there are fewer different directions.
    """
    directions = _units(gradients)
    directions = _units(directions - directions.mean(axis=0))
    generator = np.random.Generator(np.random.Philox(key=0))
    found = [_settled(directions, _started(directions, count, generator)) for _ in range(_STARTS)]
    _, centres = max(found, key=lambda one: one[0])  # the first of equals
    while len(centres) > 1:
        sizes = np.bincount((directions @ centres.T).argmax(axis=1), minlength=len(centres))
        smallest = int(sizes.argmin())
        if sizes[smallest] * _SMALLEST * count >= len(directions) and sizes[smallest] > 1:
            break
        _, centres = _settled(directions, np.delete(centres, smallest, axis=0))
    labels = (directions @ centres.T).argmax(axis=1)
    sizes = np.bincount(labels, minlength=len(centres))
    rank = np.empty(len(centres), dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(centres))
    return np.asarray(rank[labels])


def _started(directions: Float, count: int, generator: np.random.Generator) -> Float:
    """Draw centres to begin with, each in proportion to its distance from those before."""
    chosen = [int(generator.integers(len(directions)))]
    while len(chosen) < min(count, len(directions)):
        gaps = np.clip(1 - (directions @ directions[chosen].T).max(axis=1), 0.0, None)
        gaps[chosen] = 0.0
        if gaps.sum() < 1e-9:  # no other direction is left
            break
        ends = np.cumsum(gaps)
        chosen.append(int(np.searchsorted(ends, generator.random() * ends[-1], side="right").clip(0, len(ends) - 1)))
    return directions[chosen]


def _settled(directions: Float, centres: Float) -> tuple[float, Float]:
    """Return Σ of cosines to the nearest centre, and the centres, after rounds of Lloyd's algorithm on the sphere."""
    labels: NDArray[np.intp] | None = None
    for _ in range(_ROUNDS):
        nearest = (directions @ centres.T).argmax(axis=1)
        if labels is not None and np.array_equal(nearest, labels):
            break
        labels = nearest
        sums = np.array([directions[labels == place].sum(axis=0) for place in range(len(centres))])
        empty = ~np.bincount(labels, minlength=len(centres)).astype(bool)
        centres = np.where(empty[:, None], centres, _units(sums))
    return float((directions @ centres.T).max(axis=1).sum()), centres


def _units(rows: Float) -> Float:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))
