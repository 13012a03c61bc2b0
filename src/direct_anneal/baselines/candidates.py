"""The inputs of a baseline, and the choice by its scores.

N documents of the pool, M of the validation set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.data import Corpus, Names, texts
from direct_anneal.features import SketchedGradients


@dataclass(frozen=True)
class Candidates:
    """A pool, and the validation set that stands for the target.

    Attributes:
        pool, validation: N and M documents.
        text_field: where their text is.
        gradients: of the pool and of the validation set, for the baselines that need them (with losses). Sketches that
            were preconditioned by Adam's second moments make the gradient baselines the preconditioned ones.
        path_losses: mean token losses of the pool by model, (N,) each, for the baselines that need them: "start" (the
            checkpoint), "target" (annealed on the validation set), "prior" (annealed on random text of the pool) and
            "conditional" (the prior, annealed on the validation set).
        hidden_states: mean final hidden states of pool and validation set, (N, H) and (M, H).
    """

    pool: Corpus
    validation: Corpus
    text_field: Names = "text"
    gradients: tuple[SketchedGradients, SketchedGradients] | None = None
    path_losses: Mapping[str, NDArray[np.float64]] | None = None
    hidden_states: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @cached_property
    def ids(self) -> list[str]:
        """Unique ids of the pool, (N,)."""
        ids: list[str] = self.pool.index["id"].to_pylist()
        return ids

    @cached_property
    def pool_texts(self) -> list[str]:
        """(N,); all in memory."""
        return list(texts(self.pool, self.text_field))

    @cached_property
    def validation_texts(self) -> list[str]:
        """(M,)."""
        return list(texts(self.validation, self.text_field))

    @property
    def pool_gradients(self) -> SketchedGradients:
        """n ≤ N of them: what could not be used is left out.

        Raises:
            ValueError: there are none.
        """
        return self._gradients()[0]

    @property
    def validation_gradients(self) -> SketchedGradients:
        """The mean of the validation set.

        Raises:
            ValueError: there are none.
        """
        return self._gradients()[1]

    def losses(self, model: str) -> NDArray[np.float64]:
        """Return mean token losses of the pool under one of the models, (N,).

        Raises:
            ValueError: they are not there.
        """
        if self.path_losses is None or model not in self.path_losses:
            raise ValueError(f"this baseline needs losses: give the candidates those of the model {model!r}")
        return self.path_losses[model]

    @property
    def embeddings(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean hidden states of pool and validation set.

        Raises:
            ValueError: there are none.
        """
        if self.hidden_states is None:
            raise ValueError("this baseline needs embeddings: give the candidates the mean hidden states")
        return self.hidden_states

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of the documents with gradients, (n,), as values of the pool, (N,); NaN where there is none."""
        places = pc.index_in(
            self.pool_gradients.samples["id"].combine_chunks(), value_set=self.pool.index["id"].combine_chunks()
        )
        spread = np.full(len(self.ids), np.nan)
        spread[places.to_numpy()] = values
        return spread

    def _gradients(self) -> tuple[SketchedGradients, SketchedGradients]:
        if self.gradients is None:
            raise ValueError("this baseline needs gradients: give the candidates those of pool and validation set")
        return self.gradients


def take(
    scores: NDArray[np.float64],
    candidates: Candidates,
    *,
    num_samples: int | None = None,
    num_tokens: int | None = None,
) -> NDArray[np.bool_]:
    """Return the highest scores: `num_samples` documents, or in turn every one that still fits into `num_tokens`.

    Of equal scores the smaller id goes first. NaN is never taken: fewer than asked for may be left.

    Args:
        scores: (N,).

    Returns:
        the choice, (N,) bool.

    Raises:
        ValueError: not exactly one size is given, or `scores` is not (N,).
    """
    lengths = candidates.pool.num_tokens
    if (num_samples is None) == (num_tokens is None):
        raise ValueError("give exactly one of num_samples and num_tokens")
    if scores.shape != lengths.shape:
        raise ValueError(f"scores must be one for each of {len(lengths)} documents, but have shape {scores.shape}")
    by_id = np.argsort(np.array(candidates.ids, dtype=object), kind="stable")
    order = by_id[np.argsort(-scores[by_id], kind="stable")]  # NaN last
    order = order[~np.isnan(scores[order])]
    chosen = np.zeros(len(scores), dtype=bool)
    if num_samples is not None:
        chosen[order[:num_samples]] = True
        return chosen
    assert num_tokens is not None
    whole = int(np.searchsorted(np.cumsum(lengths[order]), num_tokens, side="right"))
    chosen[order[:whole]] = True
    left, shortest = num_tokens - int(lengths[chosen].sum()), int(lengths.min())
    for i in order[whole:].tolist():
        if left < shortest:
            break
        if lengths[i] <= left:
            chosen[i] = True
            left -= int(lengths[i])
    return chosen
