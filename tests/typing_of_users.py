"""Code as a user writes it, checked strictly with the package: public names carry their types, and mistakes are found.

An ignored mistake that no longer is one is an error of mypy's itself.
"""

import numpy as np
import torch

from direct_anneal import (
    DirectSelector,
    GradientSketcher,
    InputError,
    Run,
    Selection,
    SelectionProblem,
    Sketches,
    Spectrum,
    select,
    select_samples,
    solve,
)


def whole(model: str) -> dict[str, object]:
    try:
        run: Run = select(model=model, pool="pool/*.jsonl", validation="val.jsonl", fraction=0.2, out="runs/a")
    except InputError as error:
        return {"error": str(error)}
    return {"chosen": run.selection.indices.tolist(), **run.manifest}


def squared_error(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    losses: torch.Tensor = (model(batch[0]) - batch[1]).square().sum(1)
    return losses


def in_memory(module: torch.nn.Module, samples: list[torch.Tensor]) -> Selection:
    return select_samples(module, samples, samples, squared_error, num_selected=3)


def from_arrays(pool: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    selector = DirectSelector(num_selected=3, objective="descent").fit(pool)
    selection: Selection = selector.select(pool)
    spectrum: Spectrum = selector.spectrum_
    return selection.objective + float(spectrum.eigenvalues[0])


def by_parts(model: torch.nn.Module, ids: torch.Tensor) -> Selection:
    sketches: Sketches = GradientSketcher(model, sketch_size=64).sketch(ids)
    values = sketches.values.numpy()
    spectrum = Spectrum.from_sketches(values)
    return solve(SelectionProblem(spectrum.flat(values), spectrum.stiff_cost(values), num_selected=2, budget=1.0))


def mistaken(selection: Selection) -> str:
    DirectSelector(num_selected="3")  # type: ignore[arg-type]
    DirectSelector(noise="loud")  # type: ignore[arg-type]
    SelectionProblem(selection.weights, selection.weights, number=3)  # type: ignore[call-arg]
    return selection.objective  # type: ignore[return-value]
