"""Progress along the descent path and influence on the validation loss, as a weighted sum of ranks. Ours.

N samples of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from direct_anneal.config.objective import register
from direct_anneal.config.options import require
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.inputs import Built, Inputs
from direct_anneal.objectives.sketched import BudgetedObjective
from direct_anneal.objectives.walked import WalkOptions
from direct_anneal.solver import FeatureMatrix


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class BlendConfig(DamageLimits, WalkOptions, BudgetedObjective):
    """Maximise Σ_i w_i (rank of drop + β · rank of influence) / N, ranks from 1 to N, equals with equal ranks.

    The two see different things: influence is of first order at the checkpoint, the drop of a whole walk. By tokens,
    each token of a document counts. What looks damaged is left out, unless it is forced in.

    Attributes:
        learning_rates, max_passes, num_folds, scored_ends, paths, num_clusters, schedule, scored_weights: as in
            `path.PathConfig`.
        influence_weight: β. More of it forgets less of other text, and gains less on the target (docs/results.md).

    Source: ours; influence as `direct_anneal.baselines.gradient.influence_on`.
    """

    name: ClassVar[str] = "blend"
    goal: ClassVar[str] = "a large drop of loss along the descent path and a large influence on the validation loss"
    meaning: ClassVar[str] = "its rank by drop of loss along the descent path, plus a part of its rank by influence"

    influence_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.influence_weight <= 1e3, "influence_weight", "above 0, at most 1000", self.influence_weight)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"path", "gradients"})  # signs come with the path

    def build(self, inputs: Inputs) -> Built:
        from direct_anneal.baselines.gradient import influence_on

        counted, pool = self.counted(inputs), inputs.gradients("pool")
        losses, damage = self.walked(inputs), self.damage(inputs)
        drop = losses.drops.mean(axis=1)
        lengths = FeatureMatrix(pool.units, scale=pool.norms, mapper=inputs.mapper)
        influence = influence_on(lengths, inputs.gradients("validation").dense.mean(axis=0))
        score = (rankdata(drop) + self.influence_weight * rankdata(influence)) / len(drop)
        weights = inputs.token_weights
        gain = score if weights is None else score * weights
        return self.budgeted(
            inputs,
            counted,
            gain[:, None],
            objective="descent",
            target=np.ones(1),
            facts={
                "path": dict(losses.described),
                **damage.facts,
                "rank_correlation": float(np.corrcoef(rankdata(drop), rankdata(influence))[0, 1]),
            },
            remarks=damage.remarks,
            left_out=damage.left_out,
            columns={"path": drop, "influence": influence, **damage.columns},
        )
