"""The baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.baselines.dsir import dsir
from direct_anneal.baselines.gradient import gradient_cosine, influence, less
from direct_anneal.baselines.plain import low_perplexity, middle_perplexity, random
from direct_anneal.baselines.quality import quality_classifier


@dataclass(frozen=True)
class Baseline:
    """One way to score a pool.

    Attributes:
        score: (candidates, seed) to (N,) float64; the highest are taken, NaN never.
        needs_gradients: gradients, or losses, which come with them.
        is_seeded: another seed gives other scores.
    """

    score: Callable[[Candidates, int], NDArray[np.float64]]
    needs_gradients: bool = False
    is_seeded: bool = False


BASELINES: dict[str, Baseline] = {
    "random": Baseline(random, is_seeded=True),
    "low-perplexity": Baseline(low_perplexity, needs_gradients=True),
    "middle-perplexity": Baseline(middle_perplexity, needs_gradients=True),
    "dsir": Baseline(dsir, is_seeded=True),
    "gradient-cosine": Baseline(gradient_cosine, needs_gradients=True),
    "less": Baseline(less, needs_gradients=True),
    "influence": Baseline(influence, needs_gradients=True),
    "quality-classifier": Baseline(quality_classifier, is_seeded=True),
}
