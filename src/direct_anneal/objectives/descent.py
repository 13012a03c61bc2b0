"""Go downhill on the validation loss as far as possible, whatever else moves. Ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.linalg

from direct_anneal.config.objective import register
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.inputs import Built, Float, Inputs
from direct_anneal.objectives.sketched import Counted, FilteredObjective


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class DescentConfig(DamageLimits, FilteredObjective):
    """Maximise Σ_i w_i ⟨x_i, f(H̃) z̄⟩, z̄ the mean gradient of the validation set.

    What looks damaged is left out, unless it is forced in.

    Source: ours (docs/departures.md).
    """

    name: ClassVar[str] = "descent"
    goal: ClassVar[str] = "the largest decrease of the validation loss"
    meaning: ClassVar[str] = "how far it lowers the validation loss"

    def build(self, inputs: Inputs) -> Built:
        counted = self.counted(inputs)
        features = counted.matrix.like(scale=counted.scale)
        return self.budgeted(
            inputs,
            counted,
            features,
            objective="descent",
            target=self._target(inputs, counted),
            **self.damage(inputs).beside(),
        )

    def _target(self, inputs: Inputs, counted: Counted) -> Float:
        """Return f(H̃) z̄, shape (R,)."""
        mean: Float = counted.validation.mean(axis=0)
        if self.filter == "none":
            return mean
        if self.filter == "flat":
            return np.asarray(inputs.estimate.whole.flat(mean[None])[0])
        if self.filter_curvature == "validation":
            delta = self.delta(inputs)
            return inputs.estimate.whole.apply(lambda curvature: 1 / (curvature + delta), mean)
        solved: Float = scipy.linalg.solve(self.damped_curvature(counted), mean, assume_a="pos")
        return solved
