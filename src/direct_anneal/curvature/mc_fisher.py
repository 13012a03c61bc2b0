"""The Fisher information of the model's own predictions, from labels that it draws itself.

M validation samples, T tokens, V vocabulary, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.curvature.functional import evaluating, logits
from direct_anneal.gradients import GradientSketcher
from direct_anneal.io.digests import short_digest
from direct_anneal.model.batching import IGNORED_LABEL, Tokens, batches, num_predicted, padded, windows_of
from direct_anneal.model.lengths import length_switches


def monte_carlo_sketches(
    sketcher: GradientSketcher,
    documents: Sequence[Tokens],
    names: Sequence[str],
    *,
    labels: Sequence[Tokens] | None = None,
    max_length: int,
    batch_tokens: int,
    seed: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> NDArray[np.float64]:
    """Return sketches whose second moment estimates the Fisher information, and so the GGN, of the mean validation
    loss.

    Each token's label is drawn from the model's prediction at that place, after the text as it stands. The labels
    of a sample are independent, so that of its gradient's second moment the mixed terms vanish in the mean, and
    n · E[g gᵀ] = (1/n) Σ_t Jᵀ H J: the sample's part of the GGN. Hence rows √n z.

    Args:
        sketcher: S, and the model.
        documents: tokens of each sample.
        names: of the samples: a sample's labels follow from its name, its tokens and the seed alone.
        labels, max_length, batch_tokens: as in `windows_of` and `batches`; of given labels only where they are −100
            counts. The tokens themselves where left out.
        seed: of the labels.
        advance: told the tokens of each document as its labels are drawn, and of each batch as it is sketched.

    Returns:
        √n_i z_i, shape (M, R).

    Source: Martens, "New insights and perspectives on the natural gradient method", 2020; the factor n, ours.
    Cost: a forward pass one sample at a time, then as `GradientSketcher.sketch`.
    """
    labels = documents if labels is None else labels
    drawn = []
    for tokens, wanted, name in zip(documents, labels, names, strict=True):
        anew = _draw(sketcher, tokens, name, seed, max_length)
        drawn.append(np.where(wanted == IGNORED_LABEL, wanted, anew))
        advance(len(tokens))
    sums = np.zeros((len(documents), sketcher.projection.sketch_size))
    windows = windows_of(documents, max_length=max_length, labels=drawn)
    for batch in map(padded, batches(windows, batch_tokens, length_switches(sketcher.model))):
        sketches = sketcher.sketch(batch.ids, batch.mask, batch.labels)
        weights = sketches.num_tokens.cpu().numpy().astype(np.float64)
        np.add.at(sums, batch.documents, weights[:, None] * sketches.values.cpu().numpy())
        advance(int(batch.mask.sum()))
    counts = np.array([num_predicted(wanted, max_length) for wanted in labels])
    values: NDArray[np.float64] = sums / np.sqrt(counts)[:, None]  # the mean over n tokens, times √n
    return values


@torch.no_grad()
def _draw(sketcher: GradientSketcher, tokens: Tokens, name: str, seed: int, max_length: int) -> Tokens:
    """Return labels of one document, (T,). Alone in its batch, so that no neighbour can move a draw."""
    digest = short_digest(f"{seed}\0labels\0{name}")
    uniform = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(len(tokens))
    labels = tokens.copy()
    for first in range(0, len(tokens) - 1, max_length):
        ids = torch.from_numpy(tokens[first : first + max_length]).to(sketcher.device)
        with evaluating(sketcher.model):
            scores = logits(sketcher.model, ids[None])[0, :-1]
        likelihood = torch.softmax(scores.double().cpu(), dim=1).cumsum(1)  # (T, V)
        places = slice(first + 1, first + len(ids))
        sought = torch.from_numpy(uniform[places])[:, None] * likelihood[:, -1:]
        drawn = torch.searchsorted(likelihood, sought, right=True)[:, 0]
        labels[places] = drawn.clamp(max=likelihood.shape[1] - 1).numpy()  # u · 1 may round up to 1
    return labels
