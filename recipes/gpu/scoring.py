"""Scores of every document of a pool by paths of the stacked trainer, for the arms of the grid.

N documents of the pool, M of the validation set, H hidden size. Everything is of one checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from stacked import Llama, Text, Training, Weights, hidden, stacked, text_losses, train
from streams import stream

from direct_anneal.data import Corpus

PATH_PASSES, FOLDS, BATCH = 3, 3, 16
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Paths:
    """Mean token losses of the pool, (N,) each: at the checkpoint, and at the ends of walks from it.

    Attributes:
        start: at the checkpoint.
        target: annealed on the validation set.
        folds: annealed on all but one fold of it each, the mean.
        general: annealed as long on random text of the pool.
        conditional: annealed on random text of the pool, and then on the validation set.
    """

    start: Array
    target: Array
    folds: Array
    general: Array
    conditional: Array


def walk(
    model: Llama,
    weights: Weights,
    pool: Corpus,
    validation: Corpus,
    *,
    window: int,
    separator: int | None,
    batch_tokens: int,
    training: Training,
) -> Paths:
    """Anneal on the validation set, its folds and the pool side by side, and take the pool's losses at every end."""
    rows = np.arange(validation.num_samples)
    fold_of = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    steps = max(4, round(PATH_PASSES * int(validation.num_tokens.sum()) / (BATCH * window)))

    def windows(corpus: Corpus, chosen: NDArray[np.int64]) -> NDArray[np.uint16]:
        return stream(corpus, chosen, replay=0.0, num_windows=steps * BATCH, window=window, separator=separator, seed=0)

    everything = windows(validation, rows)
    each = [everything, *(windows(validation, rows[fold_of != fold]) for fold in range(FOLDS))]
    each.append(windows(pool, np.arange(pool.num_samples)))
    ends = stacked(weights, len(each))
    train(model, ends, np.stack(each), training, batch=BATCH)
    conditional = {name: value[-1:].clone() for name, value in ends.items()}
    train(model, conditional, everything[None], training, batch=BATCH)

    texts = [Text(pool.tokens(i)[:window], 1) for i in range(pool.num_samples)]
    predicted = np.array([max(1, len(text.tokens) - 1) for text in texts])
    device = next(iter(weights.values())).device

    def losses(of: Weights) -> Array:
        found = text_losses(model, of, texts, window=window, batch_tokens=batch_tokens, autocast=training.autocast)
        means: Array = found / predicted
        return means

    at = losses(ends)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Paths(
        start=losses(stacked(weights, 1))[0],
        target=at[0],
        folds=at[1 : 1 + FOLDS].mean(0),
        general=at[-1],
        conditional=losses(conditional)[0],
    )


def embeddings(model: Llama, weights: Weights, corpus: Corpus, window: int, batch_tokens: int) -> Array:
    """Mean final hidden state of each document, (N, H)."""
    one = stacked(weights, 1)
    device = next(iter(weights.values())).device
    order = np.argsort(-corpus.num_tokens, kind="stable")
    found = np.zeros((corpus.num_samples, next(iter(weights.values())).shape[1]))
    start = 0
    with torch.inference_mode():
        while start < len(order):
            longest = min(window, int(corpus.num_tokens[order[start]]))
            part = order[start : start + max(1, batch_tokens // longest)]
            ids = np.zeros((len(part), longest), dtype=np.int64)
            mask = np.zeros((len(part), longest, 1), dtype=np.float32)
            for row, i in enumerate(part):
                tokens = corpus.tokens(int(i))[:window]
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            states = hidden(model, one, torch.from_numpy(ids).to(device)[None]).reshape(*ids.shape, -1).float()
            weight = torch.from_numpy(mask).to(device)
            found[part] = ((states * weight).sum(1) / weight.sum(1)).double().cpu().numpy()
            start += len(part)
    return found


def ranks(values: Array) -> Array:
    """Ranks from 0 to 1; what is no number has the lowest."""
    order = np.argsort(np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable"), kind="stable")
    return order / max(1, len(values) - 1)


def standardised(values: Array) -> Array:
    """Mean 0 and standard deviation 1; what is no number has the lowest."""
    filled = np.where(np.isfinite(values), values, np.nanmin(values))
    scaled: Array = (filled - filled.mean()) / max(float(filled.std()), 1e-12)
    return scaled


def forms(paths: Paths, influence: Array | None) -> dict[str, Array]:
    """Ways to use the losses, alone and with the influence of gradients: the arms among which a default is sought."""
    drop, fold_drop, general = (paths.start - end for end in (paths.target, paths.folds, paths.general))
    found = {
        "path: drop": drop,
        "path: drop over folds": fold_drop,
        "path: relative drop": fold_drop / paths.start,
        "path: drop beyond general": fold_drop - general,
        "path: end against general": paths.general - paths.target,
        "conditional loss": paths.general - paths.conditional,
    }
    if influence is not None:
        found |= {
            "path + influence: ranks": ranks(fold_drop) + ranks(influence),
            "path + influence: standardised": standardised(fold_drop) + standardised(influence),
            "path + influence: lower rank": np.minimum(ranks(fold_drop), ranks(influence)),
            "path beyond general + influence: ranks": ranks(fold_drop - general) + ranks(influence),
        }
    return found
