"""The baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.cluster_histogram import cluster_histogram
from direct_anneal.baselines.conditional import conditional_loss
from direct_anneal.baselines.dsir import dsir
from direct_anneal.baselines.embedding import embedding_similarity
from direct_anneal.baselines.gradient import gradient_cosine, influence, less
from direct_anneal.baselines.paper import published
from direct_anneal.baselines.plain import low_perplexity, middle_perplexity, random
from direct_anneal.baselines.quality import quality_classifier
from direct_anneal.baselines.target_path import target_path


@dataclass(frozen=True)
class Baseline:
    """One way to score a pool.

    Attributes:
        score: (candidates, seed) to (N,) float64; the highest are taken, NaN never. Takes `counts` by name.
        needs_gradients: gradients, or losses, which come with them.
        needs_losses: models of `Candidates.path_losses`.
        needs_embeddings: mean hidden states.
        is_seeded: another seed gives other scores.
        counts: settings of its own, whole numbers of at least 1.
    """

    score: Callable[..., NDArray[np.float64]]
    needs_gradients: bool = False
    needs_losses: tuple[str, ...] = ()
    needs_embeddings: bool = False
    is_seeded: bool = False
    counts: tuple[str, ...] = ()


BASELINES: dict[str, Baseline] = {
    "random": Baseline(random, is_seeded=True),
    "low-perplexity": Baseline(low_perplexity, needs_gradients=True),
    "middle-perplexity": Baseline(middle_perplexity, needs_gradients=True),
    "dsir": Baseline(dsir, is_seeded=True),
    "gradient-cosine": Baseline(gradient_cosine, needs_gradients=True),
    "less": Baseline(less, needs_gradients=True),
    "influence": Baseline(influence, needs_gradients=True),
    "quality-classifier": Baseline(quality_classifier, is_seeded=True),
    "conditional-loss": Baseline(conditional_loss, needs_losses=("prior", "conditional")),
    "target-path": Baseline(target_path, needs_losses=("start", "target")),
    "cluster-histogram": Baseline(cluster_histogram, needs_embeddings=True, is_seeded=True, counts=("num_clusters",)),
    "embedding-similarity": Baseline(embedding_similarity, needs_embeddings=True, counts=("num_nearest",)),
    "published": Baseline(published, needs_gradients=True),
}
