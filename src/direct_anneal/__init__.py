"""Choose the data of the annealing phase by curvature (DiReCT, arXiv:2605.31175).

from direct_anneal import select
run = select(model="ckpt", pool="pool/*.jsonl.zst", validation="val.jsonl", fraction=0.2, out="runs/a")
run.selection, run.manifest["budget"]
"""

from direct_anneal.curvature import Spectrum
from direct_anneal.errors import InputError
from direct_anneal.gradients import GradientSketcher, Sketches
from direct_anneal.selection import DirectSelector, Run, SelectConfig, select
from direct_anneal.solver import InfeasibleBudgetError, Selection, SelectionProblem, solve

__all__ = [
    "DirectSelector",
    "GradientSketcher",
    "InfeasibleBudgetError",
    "InputError",
    "Run",
    "SelectConfig",
    "Selection",
    "SelectionProblem",
    "Sketches",
    "Spectrum",
    "select",
    "solve",
]
