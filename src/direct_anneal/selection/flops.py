"""Window counts and FLOPs of a corpus sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data import Part


def window_lengths(part: Part, window: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return tokens of every window of the part, and how many windows of the whole it stands for."""
    lengths, weights = [], []
    for count, weight in zip(part.corpus.num_tokens.tolist(), part.weights.tolist(), strict=True):
        of_document = [min(window, count - first) for first in range(0, count, window)]
        lengths += of_document
        weights += [weight] * len(of_document)
    return np.array(lengths, dtype=np.float64), np.array(weights)


def num_windows(part: Part, window: int) -> int:
    """Estimate the windows of the whole that the part stands for."""
    return round(float(window_lengths(part, window)[1].sum()))


def flops(part: Part, model: nn.Module, window: int, *, matrix: float, attention: float) -> float:
    """Count FLOPs; in attention a token meets half of the others.

    Args:
        matrix, attention: FLOPs for a token and an entry of a matrix, and for a pair of tokens in an entry of width;
            forward alone 2 and 2, with the gradients of activations 4 and 6, with those of weights 6 and 6.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    looked_up.discard(id(head.weight) if head is not None else 0)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    width = getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    lengths, weights = window_lengths(part, window)
    # Attention: two products forward and four backward, 2 FLOPs each, half of them masked.
    return float(weights @ (matrix * matrices * lengths + attention * width * lengths**2))
