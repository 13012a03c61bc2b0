"""Choose samples on arrays alone: a problem, its exact linear step, a selection with its evidence. No torch here."""

from direct_anneal.solver.infeasibility import InfeasibleBudgetError, InfeasibleError, Relaxation
from direct_anneal.solver.matrix import FeatureMatrix, Map
from direct_anneal.solver.parts import Block, Joined
from direct_anneal.solver.problem import Linear, Objective, Quota, SelectionProblem, Unit
from direct_anneal.solver.solution import Selection
from direct_anneal.solver.solve_problem import solve

__all__ = [
    "Block",
    "FeatureMatrix",
    "InfeasibleBudgetError",
    "InfeasibleError",
    "Joined",
    "Linear",
    "Map",
    "Objective",
    "Quota",
    "Relaxation",
    "Selection",
    "SelectionProblem",
    "Unit",
    "solve",
]
