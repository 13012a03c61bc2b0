"""Selection for research: any module, any samples, any loss for each of them; in memory, no files.

N samples, M of them for validation, K selected, R sketch size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from direct_anneal.config.names import SKETCH_SIZE, ProjectionName
from direct_anneal.config.option import configuration, declared, option
from direct_anneal.config.options import require, require_seed
from direct_anneal.config.selector import SelectorConfig
from direct_anneal.config.signature import takes
from direct_anneal.config.types import OptionalTexts
from direct_anneal.errors import InputError
from direct_anneal.features.load import reasons_to_leave_out
from direct_anneal.gradients import Collate, GradientSketcher, LossFunction
from direct_anneal.io.threads import one_blas_thread
from direct_anneal.progress import Advance, current_progress
from direct_anneal.selection.selector import DirectSelector
from direct_anneal.solver import Selection

P = ParamSpec("P")
R = TypeVar("R")

_BATCH_SIZE = 32

Float = NDArray[np.float64]


@configuration
class SamplesConfig(SelectorConfig):
    """Options of `select_samples`."""

    module: nn.Module = option(kw_only=False, python_only=True, help="any module")
    samples: Sequence[Any] = option(
        kw_only=False, python_only=True, help="the pool, N: anything with a length and positions"
    )
    validation: Sequence[Any] = option(
        kw_only=False, python_only=True, help="M; the halves that are held out are even and odd positions"
    )
    loss_fn: LossFunction = option(
        kw_only=False, python_only=True, help="(module, batch) -> one loss for each sample, shape (B,)"
    )
    sketch_size: int = option(default=SKETCH_SIZE, help="numbers per sketched gradient")
    projection: ProjectionName = option(default="two-sided", help="the fast sketch, or the paper's dense one")
    seed: int = option(default=0, help="of the projection")
    batch_size: int | None = option(
        default=None,
        unset=f"{_BATCH_SIZE}, more for a dense Gaussian",
        help="samples that flow through the module at once",
    )
    collate: Collate = option(
        default=default_collate, unset="torch's default", python_only=True, help="makes a batch of a list of samples"
    )
    parameters: OptionalTexts = option(
        default=None, unset="all", help="patterns of the names of the parameters whose gradients count"
    )
    scales: Mapping[str, Tensor] | None = option(
        default=None, python_only=True, help="by parameter, as `adam_scales` has them"
    )

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise InputError(
                field="module", must="be an nn.Module where samples are given", got=type(self.module).__name__
            )
        for name, given in (("samples", self.samples), ("validation", self.validation)):
            if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
                raise InputError(
                    field=name, must="have a length and positions, as a list has", got=type(given).__name__
                )
            if not len(given):
                raise InputError(field=name, must="hold at least one sample", got="none")
        super().__post_init__()
        count, chosen = len(self.samples), self.num_selected
        fits = chosen is None or 1 <= chosen <= count
        require(fits, "num_selected", f"in 1..{count}, the number of samples", chosen)
        require_seed(self.seed)
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)


@takes(SamplesConfig)
@one_blas_thread()
def select_samples(config: SamplesConfig) -> Selection:
    """Choose samples for any module under any loss. For a causal LM, `loss_fn` returns mean token losses, shape (B,).

    Ties break by position. The result does not depend on `batch_size` beyond float rounding. Samples whose gradient is
    NaN, infinite or above 100 times the median norm are left out, and a warning names their positions; K or the
    fraction is of the others.

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
    selector = DirectSelector(**{name: getattr(config, name) for name in declared(SelectorConfig)})
    sketcher = GradientSketcher(
        config.module,
        config.sketch_size,
        config.projection,
        config.seed,
        parameters=config.parameters,
        scales=config.scales,
    )
    size = config.batch_size or _BATCH_SIZE * sketcher.projection.batch_factor
    usable, sketches = {}, {}
    # The small one first: it shows trouble early.
    for name, given in (("validation", config.validation), ("samples", config.samples)):
        with current_progress().stage(f"Gradients of the {name}", "samples", len(given)) as advance:
            usable[name], sketches[name] = _sketched(
                sketcher, name, given, config.loss_fn, config.collate, size, advance
            )
    count, kept = len(config.samples), usable["samples"]
    selection = selector.fit(sketches["validation"]).select(sketches["samples"])
    weights, scores = np.zeros(count), np.full(count, np.nan)
    weights[kept], scores[kept] = selection.weights, selection.scores
    return Selection(**{**vars(selection), "indices": kept[selection.indices], "weights": weights, "scores": scores})


def accepting_samples(function: Callable[P, R]) -> Callable[P, R]:
    """Hand calls with a module and samples on to `select_samples`, which for one release are `select`'s as well."""

    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        if not args and not isinstance(given.get("model"), nn.Module):
            return function(*args, **given)
        warnings.warn(
            "select(module, samples, ...) is called select_samples now: use that name", DeprecationWarning, stacklevel=2
        )
        options: dict[str, Any] = dict(given)
        if "model" in options:
            options["module"] = options.pop("model")
        chosen: Any = select_samples
        selection: R = chosen(*args, **options)
        return selection

    return called


def _sketched(
    sketcher: GradientSketcher,
    name: str,
    samples: Sequence[Any],
    loss_fn: LossFunction,
    collate: Collate,
    size: int,
    advance: Advance,
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return positions of the n samples whose gradient is usable, and Z of these, shape (n, R)."""
    values = np.empty((len(samples), sketcher.projection.sketch_size), dtype=np.float32)
    losses = np.empty(len(samples))
    for first in range(0, len(samples), size):
        rows = range(first, min(first + size, len(samples)))
        sketches = sketcher.sketch_samples([samples[row] for row in rows], loss_fn, collate)
        values[rows.start : rows.stop] = sketches.values.cpu().numpy()
        losses[rows.start : rows.stop] = sketches.losses.cpu().numpy()
        advance(len(rows))
    if not np.isfinite(losses).any():
        raise InputError(
            subject=f"losses of the {name}",
            must="be finite",
            got=f"but all {len(samples)} are NaN or infinite",
            do="see what loss_fn returns, and whether the module's weights are finite",
        )
    reasons = reasons_to_leave_out(losses, np.linalg.norm(values.astype(np.float64), axis=1))
    left_out = [f"{position} ({reason})" for position, reason in enumerate(reasons) if reason is not None]
    if len(left_out) == len(samples):
        raise InputError(
            subject=f"gradients of the {name}", must="be finite", got=f"but all {len(samples)} are NaN or infinite"
        )
    if left_out:
        warnings.warn(f"{name} left out for their gradients, by position: {', '.join(left_out)}", stacklevel=5)
    kept = np.flatnonzero([reason is None for reason in reasons])
    return kept, values[kept]
