"""The two steps that every objective has: build a problem, solve it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from direct_anneal.config.objective import ObjectiveConfig
from direct_anneal.objectives.inputs import Built, Inputs
from direct_anneal.solver import Selection, SelectionProblem, solve


@dataclass(frozen=True, kw_only=True, repr=False)
class SelectionObjective(ObjectiveConfig):
    """An objective that `select` can use: its options, and the steps from inputs to a selection."""

    @abstractmethod
    def build(self, inputs: Inputs) -> Built:
        """Return the selection problem, of options that are `resolved`.

        Raises:
            InputError: the inputs do not allow what was asked for.
        """

    def solve(self, problem: SelectionProblem) -> Selection:
        """Choose; as `direct_anneal.solver.solve`, unless the objective knows better.

        Raises:
            InfeasibleError: no selection keeps every constraint.
        """
        return solve(problem)
