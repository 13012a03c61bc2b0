"""Choose the data of the annealing phase by curvature (DiReCT, arXiv:2605.31175).

from direct_anneal import select
run = select(model="ckpt", pool="pool/*.jsonl.zst", validation="val.jsonl", fraction=0.2, out="runs/a")
run.selection, run.manifest["budget"]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from direct_anneal.config.select import SelectConfig
    from direct_anneal.curvature import Spectrum
    from direct_anneal.errors import InputError
    from direct_anneal.gradients import GradientSketcher, Sketches
    from direct_anneal.progress import showing
    from direct_anneal.selection import (
        DirectSelector,
        Run,
        compute_features,
        plan,
        select,
        select_again,
        select_samples,
    )
    from direct_anneal.solver import InfeasibleBudgetError, Selection, SelectionProblem, solve

# Loaded when they are first asked for: torch alone takes seconds, and the command heeds Ctrl-C before anything else.
_ROOMS = {
    "config.select": ("SelectConfig",),
    "curvature": ("Spectrum",),
    "errors": ("InputError",),
    "gradients": ("GradientSketcher", "Sketches"),
    "progress": ("showing",),
    "selection": ("DirectSelector", "Run", "compute_features", "plan", "select", "select_again", "select_samples"),
    "solver": ("InfeasibleBudgetError", "Selection", "SelectionProblem", "solve"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

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
    "compute_features",
    "plan",
    "select",
    "select_again",
    "select_samples",
    "showing",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
