"""Progress along the descent path and along the gradient, as a weighted sum of ranks. Ours, and the default.

N samples of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from direct_anneal.config.objective import register
from direct_anneal.config.options import require
from direct_anneal.objectives.descent import DescentConfig
from direct_anneal.objectives.inputs import Built, Inputs
from direct_anneal.objectives.walked import WalkOptions


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class BlendConfig(WalkOptions, DescentConfig):
    """Maximise Σ_i w_i (rank of drop + β · rank of descent) / N, ranks from 1 to N, equals with equal ranks.

    The two see different things: the drop is that of a whole walk, the descent, as of the objective of this name, that
    of a first step, with words beside gradients. By tokens, each token of a document counts. What looks damaged is left
    out, unless it is forced in.

    Attributes:
        learning_rates, max_passes, num_folds, scored_ends, paths, num_clusters, schedule, scored_weights: as in
            `path.PathConfig`.
        descent_weight: β. More of it forgets less of other text (docs/results.md).

    Source: ours.
    """

    name: ClassVar[str] = "blend"
    goal: ClassVar[str] = "a large drop of loss along the descent path and a large decrease of the validation loss"
    meaning: ClassVar[str] = "its rank by drop of loss along the descent path, plus a multiple of its rank by descent"

    descent_weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.descent_weight <= 1e3, "descent_weight", "above 0, at most 1000", self.descent_weight)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"path"}

    def build(self, inputs: Inputs) -> Built:
        counted, losses = self.counted(inputs), self.walked(inputs)
        drop = losses.drops.mean(axis=1)
        descent = counted.matrix.dot(self._target(inputs, counted))
        ranks = rankdata(drop), rankdata(descent)
        score = (ranks[0] + self.descent_weight * ranks[1]) / len(drop)
        weights = inputs.token_weights
        gain = score if weights is None else score * weights
        return self.budgeted(
            inputs,
            counted,
            gain[:, None],
            objective="descent",
            target=np.ones(1),
            **self.damage(inputs).beside(
                facts={"path": dict(losses.described), "rank_correlation": float(np.corrcoef(*ranks)[0, 1])},
                columns={"path": drop, "descent": descent},
            ),
        )
