"""Choose samples on arrays alone: a problem, its exact linear step, a selection with its evidence. No torch here."""

from direct_anneal.selection.infeasibility import InfeasibleBudgetError, InfeasibleError, Relaxation
from direct_anneal.selection.matrix import FeatureMatrix
from direct_anneal.selection.problem import Objective, Quota, SelectionProblem
from direct_anneal.selection.solution import Selection
from direct_anneal.selection.solving import solve

__all__ = [
    "FeatureMatrix",
    "InfeasibleBudgetError",
    "InfeasibleError",
    "Objective",
    "Quota",
    "Relaxation",
    "Selection",
    "SelectionProblem",
    "solve",
]
