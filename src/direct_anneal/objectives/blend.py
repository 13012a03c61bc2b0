"""Progress along the descent path and along the gradient, as a weighted sum of ranks; matching, where the pool has
text of the target's own kind. Ours, and the default.

N samples of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeGuard

import numpy as np
from scipy.stats import rankdata

from direct_anneal.config.objective import Likeness, register
from direct_anneal.config.options import require
from direct_anneal.objectives.descent import DescentConfig
from direct_anneal.objectives.inputs import Built, Float, Inputs
from direct_anneal.objectives.matching import MatchingConfig
from direct_anneal.objectives.walked import WalkOptions


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class BlendConfig(WalkOptions, DescentConfig):
    """Maximise Σ_i w_i (rank of drop + β · rank of descent) / N, ranks from 1 to N, equals with equal ranks.

    The two see different things: the drop is that of a whole walk, the descent, as of the objective of this name, that
    of a first step, with words beside gradients. By tokens, each token of a document counts. What looks damaged is left
    out, unless it is forced in.

    Where words tell a validation document from one of the pool in fewer than `matching_below` of all pairs, as
    `run.likeness` counts them, it is `matching` instead, and no path is walked: 2 (1 − this share) is the most that the
    pool can have of text that nothing tells from the target, and where there is such text, coming closer to the target
    on the whole chose better.

    Attributes:
        learning_rates, max_passes, num_folds, scored_ends, paths, num_clusters, walk_replay, schedule, scored_weights:
            as in `path.PathConfig`.
        descent_weight: β. More of it forgets less of other text (docs/results.md).
        matching_below: 0 is never. Tasks are at 1, whole domains of a pool at 0.89 to 0.94 (docs/results.md).

    Source: ours.
    """

    name: ClassVar[str] = "blend"
    goal: ClassVar[str] = "a large drop of loss along the descent path and a large decrease of the validation loss"
    meaning: ClassVar[str] = "its rank by drop of loss along the descent path, plus a multiple of its rank by descent"

    descent_weight: float = 2.0
    matching_below: float = 0.97

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.matching_below <= 1, "matching_below", "in [0, 1]", self.matching_below)
        require(0 < self.descent_weight <= 1e3, "descent_weight", "above 0, at most 1000", self.descent_weight)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"path"}

    def needs_where(self, told_apart: Likeness) -> frozenset[str]:
        return self._matching.needs if self._matches(told_apart()) else self.needs

    def build(self, inputs: Inputs) -> Built:
        told_apart = inputs.told_apart
        if self._matches(told_apart):
            return self._matched(inputs, told_apart)
        losses, counted = self.walked(inputs), self.counted(inputs)
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
                facts={"path": dict(losses.described), "rank_correlation": _correlation(*ranks)},
                columns={"path": drop, "descent": descent},
            ),
        )

    def _matches(self, told_apart: float | None) -> TypeGuard[float]:
        return told_apart is not None and told_apart < self.matching_below

    @property
    def _matching(self) -> MatchingConfig:
        """Matching with the options that both have."""
        known = {each.name for each in fields(MatchingConfig)} & {each.name for each in fields(self)}
        return MatchingConfig(**{name: getattr(self, name) for name in known})

    def _matched(self, inputs: Inputs, told_apart: float) -> Built:
        matching = self._matching
        built = matching.build(inputs)
        return replace(
            built,
            facts={
                **built.facts,
                "goal": matching.goal,
                "meaning": matching.meaning,
                "chosen_by": matching.name,
                "told_apart": told_apart,
            },
            remarks=[
                *built.remarks,
                f"pool: there is text of the target's own kind (words tell a validation document from one of the pool "
                f"in {told_apart:.0%} of pairs, below {self.matching_below:.0%}), so matching chose, without a path; "
                "matching_below=0 keeps to path and descent",
            ],
        )


def _correlation(a: Float, b: Float) -> float | None:
    """Return the correlation of two rows of numbers; None where one of them is all alike."""
    return None if min(np.ptp(a), np.ptp(b)) == 0 else float(np.corrcoef(a, b)[0, 1])
