"""Selection for research: any module, any samples, any loss for each of them; in memory, no files.

N samples, M of them for validation, K selected, R sketch size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from direct_anneal.config.objective import (
    DEFAULT_OBJECTIVE,
    Filter,
    FilterCurvature,
    Gradients,
    Noise,
    ObjectiveConfig,
    Ratio,
    Reference,
)
from direct_anneal.curvature import PAPER_SHARE
from direct_anneal.errors import InputError, named_as_in_python
from direct_anneal.features.load import reasons_to_leave_out
from direct_anneal.gradients import Collate, GradientSketcher, LossFunction, ProjectionName
from direct_anneal.progress import Advance, Progress, Silent
from direct_anneal.selection.selector import DirectSelector
from direct_anneal.solver import Selection

_BATCH_SIZE = 32

Float = NDArray[np.float64]


@named_as_in_python()
def select_samples(
    model: nn.Module,
    samples: Sequence[Any],
    validation: Sequence[Any],
    loss_fn: LossFunction,
    *,
    num_selected: int | None = None,
    fraction: float | None = None,
    objective: str | ObjectiveConfig = DEFAULT_OBJECTIVE,
    target_scale: float | None = None,
    budget_ratio: Ratio | None = None,
    budget_reference: Reference | None = None,
    filter: Filter | None = None,
    damping: float | None = None,
    filter_curvature: FilterCurvature | None = None,
    gradients: Gradients | None = None,
    noise: Noise | None = None,
    elbow: float | Literal["gap"] = PAPER_SHARE,
    sketch_size: int = 2048,
    projection: ProjectionName = "two-sided",
    seed: int = 0,
    batch_size: int | None = None,
    collate: Collate = default_collate,
    parameters: Sequence[str] | None = None,
    scales: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Choose samples for any module under any loss. For a causal LM, `loss_fn` returns mean token losses, shape (B,).

    Ties break by position. The result does not depend on `batch_size` beyond float rounding. Samples whose gradient is
    NaN, infinite or above 100 times the median norm are left out, and a warning names their positions; K or the
    fraction is of the others.

    Args:
        samples: the pool, N: anything with a length and positions.
        validation: M; halves that are held out (`budget_reference="validation"`) are even and odd positions.
        loss_fn, collate: as `GradientSketcher.sketch_samples` takes them.
        num_selected, fraction: K, or K / N; exactly one is given.
        batch_size: samples that flow through the model at once; 32 where left out, more for a dense Gaussian.
        sketch_size, projection, seed, parameters, scales: of the `GradientSketcher`.
        objective, target_scale, budget_ratio, budget_reference, filter, damping, filter_curvature, gradients, noise,
            elbow: as in `SelectConfig`.
        progress: shows the stages; silent where left out.

    Returns:
        Its indices are positions in `samples`; what is left out has weight 0 and score NaN.

    Raises:
        InputError: something given cannot be used, or the budget cannot be met; says what to do.
        ValueError: `loss_fn` does not return one loss for each sample, or as for `GradientSketcher`.

    Cost: see `GradientSketcher.sketch_samples`; memory for N R floats.

    >>> import torch
    >>> data = [(torch.tensor([float(i), 1.0]), torch.tensor(0.5 * i)) for i in range(8)]
    >>> def squared_error(model, batch):
    ...     return (model(batch[0])[:, 0] - batch[1]) ** 2
    >>> _ = torch.manual_seed(0)
    >>> len(select_samples(nn.Linear(2, 1), data[:6], data[6:], squared_error, num_selected=2, sketch_size=8).indices)
    2
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module where samples are given, got {type(model).__name__}")
    for name, given in (("samples", samples), ("validation", validation)):
        if not len(given):
            raise InputError(f"{name} must hold at least one sample, got none")
    if num_selected is not None and not 1 <= num_selected <= len(samples):
        raise InputError(f"num_selected must be in 1..{len(samples)}, the number of samples, got {num_selected}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    selector = DirectSelector(
        num_selected=num_selected,
        fraction=fraction,
        objective=objective,
        target_scale=target_scale,
        filter=filter,
        damping=damping,
        filter_curvature=filter_curvature,
        gradients=gradients,
        noise=noise,
        budget_ratio=budget_ratio,
        budget_reference=budget_reference,
        elbow=elbow,
    )
    selector.check()  # before the long part
    sketcher = GradientSketcher(model, sketch_size, projection, seed, parameters=parameters, scales=scales)
    size = batch_size or _BATCH_SIZE * sketcher.projection.batch_factor
    usable, sketches = {}, {}
    for name, given in (("validation", validation), ("samples", samples)):  # the small one shows trouble early
        with (progress or Silent()).stage(f"Gradients of the {name}", "samples", len(given)) as advance:
            usable[name], sketches[name] = _sketched(sketcher, name, given, loss_fn, collate, size, advance)
    kept = usable["samples"]
    selection = selector.fit(sketches["validation"]).select(sketches["samples"])
    weights, scores = np.zeros(len(samples)), np.full(len(samples), np.nan)
    weights[kept], scores[kept] = selection.weights, selection.scores
    return Selection(**{**vars(selection), "indices": kept[selection.indices], "weights": weights, "scores": scores})


def _sketched(
    sketcher: GradientSketcher,
    name: str,
    samples: Sequence[Any],
    loss_fn: LossFunction,
    collate: Collate,
    size: int,
    advance: Advance,
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Positions of the n samples whose gradient is usable, and Z of these, shape (n, R)."""
    values = np.empty((len(samples), sketcher.projection.sketch_size), dtype=np.float32)
    losses = np.empty(len(samples))
    for first in range(0, len(samples), size):
        rows = range(first, min(first + size, len(samples)))
        sketches = sketcher.sketch_samples([samples[row] for row in rows], loss_fn, collate)
        values[rows.start : rows.stop] = sketches.values.cpu().numpy()
        losses[rows.start : rows.stop] = sketches.losses.cpu().numpy()
        advance(len(rows))
    reasons = reasons_to_leave_out(losses, np.linalg.norm(values.astype(np.float64), axis=1))
    left_out = [f"{position} ({reason})" for position, reason in enumerate(reasons) if reason is not None]
    if len(left_out) == len(samples):
        raise InputError(f"gradients of the {name} must be finite, but all {len(samples)} are NaN or infinite")
    if left_out:
        warnings.warn(f"{name} left out for their gradients, by position: {', '.join(left_out)}", stacklevel=5)
    kept = np.flatnonzero([reason is None for reason in reasons])
    return kept, values[kept]
