"""Bring the selection's mean to where the validation set's is. Ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from direct_anneal.config.objective import TARGET_SCALE, register
from direct_anneal.config.options import require
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.inputs import Built, Float, Inputs
from direct_anneal.objectives.sketched import Counted, FilteredObjective


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class MatchingConfig(DamageLimits, FilteredObjective):
    """Minimise ⟨d, f(H̃) d⟩, d = Σ_i w_i x_i − K (x̄ + reach · known · (z̄ − x̄)), counted from that of K x̄.

    K is the expected number selected, x̄ the pool's mean, z̄ the validation set's, known as in `known_share`. The reach
    is `target_scale`, and with a share s of replay, whose mean is x̄, target_scale / (1 − s): then selection and replay
    together have their mean where the selection alone would have had it.

    What looks damaged is left out, unless it is forced in.

    Attributes:
        target_scale: near 0 asks for a small pool, 1 for more of the same as the validation set, more leans towards
            what the validation set has and the pool has not.

    Source: ours (docs/departures.md).
    """

    name: ClassVar[str] = "matching"
    goal: ClassVar[str] = "a mix closer to the validation set, at little cost in stiff directions"
    meaning: ClassVar[str] = "how far it brings the selection closer to the target"

    target_scale: float = TARGET_SCALE

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.target_scale <= 1e6, "target_scale", "above 0 and at most 1e6", self.target_scale)

    def build(self, inputs: Inputs) -> Built:
        counted = self.counted(inputs)
        removed = self.removed(inputs)
        mapped = self._root(inputs, counted) if self.filter == "newton" else None
        features = counted.matrix.like(scale=counted.scale, removed=removed, mapped=mapped)
        seen = counted.validation if removed is None else inputs.estimate.whole.flat(counted.validation)
        seen = seen if mapped is None else seen @ mapped
        count = features.shape[0]
        mean = features.weighted_sum(np.ones(count)) / count
        known = known_share(mean, count, features.mean_squared_norm(), seen)
        start = inputs.expected * mean
        reach = self.target_scale / (1 - inputs.replay)
        target = start + inputs.expected * reach * known * (seen.mean(axis=0) - mean)
        return self.budgeted(
            inputs,
            counted,
            features,
            objective="matching",
            target=target,
            start=start,
            **self.damage(inputs).beside(facts={"known": known, **({"reach": reach} if inputs.replay else {})}),
        )

    def _root(self, inputs: Inputs, counted: Counted) -> Float:
        """Return W with W Wᵀ = (H̃ + δ)⁻¹, shape (R, R), or (R, n) as of `damped_root`."""
        if self.filter_curvature == "validation":
            delta = self.delta(inputs)
            return inputs.estimate.whole.apply(
                lambda curvature: 1 / np.sqrt(curvature + delta), np.eye(counted.matrix.shape[1])
            )
        return self.damped_root(counted)


def known_share(mean: Float, count: int, mean_squared_norm: float, validation: Float) -> float:
    """Return positive-part James–Stein shrinkage of the mean difference, in [0, 1].

        1 − (tr C_val / M + tr C_pool / N) / ‖z̄ − x̄‖²

    Args:
        mean: x̄, shape (R,).
        count: N.
        mean_squared_norm: of ‖x‖² over the pool.
        validation: x of the validation set, shape (M, R).
    """
    aim, num_validation = validation.mean(axis=0), len(validation)
    apart = float(np.square(aim - mean).sum())
    chance = float(mean_squared_norm - mean @ mean) / count
    if num_validation > 1:  # of a single one nobody knows
        chance += float(np.square(validation - aim).sum()) / (num_validation - 1) / num_validation
    return max(0.0, 1.0 - chance / apart) if apart > 0 else 0.0
