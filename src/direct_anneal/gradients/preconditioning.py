"""Gradients in the geometry of the optimiser: entry by entry rescaled before they are sketched.

B samples of a batch, T tokens; a parameter has shape (m, n).
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from direct_anneal.errors import InputError
from direct_anneal.gradients.projections import Projection
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.records import RecordError
from direct_anneal.model.saved import load_saved

# What transformers' Trainer keeps out of weight decay, in a parameter group of its own: LayerNorms, and these names.
_UNDECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class Preconditioned(Projection):
    """Projection S diag(scale): gradients are rescaled entry by entry before another projection gets them.

    A scale for each entry does not pass through a sum over tokens, so that here each sample's gradient of a linear
    layer is formed, one at a time; for a look-up (an embedding) it is not needed.

    Cost: 2 T m n per sample and linear layer beside the inner projection of whole gradients; memory of one gradient.
    The factors of all layers are held until the backward pass, as training holds them.

    Args:
        inner: the projection that follows.
        scales: a factor for every entry, by the parameter's name, in the parameter's shape.
    """

    def __init__(self, inner: Projection, scales: Mapping[str, Tensor]) -> None:
        super().__init__(inner.shapes, inner.sketch_size, inner.seed, inner.device)
        if missing := sorted(inner.shapes.keys() - scales.keys()):
            raise ValueError(f"every covered parameter needs a scale, {len(missing)} have none: {missing[0]}, ...")
        self._inner = inner
        self.batch_factor = inner.batch_factor
        self._scales = {}
        for name, shape in inner.shapes.items():
            if scales[name].numel() != shape[0] * shape[1]:
                raise ValueError(f"the scale of {name} has shape {tuple(scales[name].shape)}, the parameter {shape}")
            self._scales[name] = scales[name].detach().to(inner.device, torch.float32).reshape(shape)

    def begin(self, batch_size: int) -> None:
        self._inner.begin(batch_size)

    def finish(self) -> Tensor:
        return self._inner.finish()

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:  # noqa: ARG002
        return factor

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        scale = self._scales[name]
        if not rows.is_floating_point():  # Σ_t e_row c_tᵀ, whose entries of one row share that row of scales
            columns = columns.float() * scale[rows]
            self._inner.outer(name, self._inner.keep(name, 0, rows), self._inner.keep(name, 1, columns))
            return
        for sample, (left, right) in enumerate(zip(rows.float(), columns.float(), strict=True)):
            self._inner.full(name, (left.T @ right).mul_(scale)[None], sample)

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        scaled = gradients.reshape(len(gradients), *self.shapes[name]).float() * self._scales[name]
        self._inner.full(name, scaled, sample)


def optimizer_fingerprint(path: str | None) -> str | None:
    """Return sha256 of an optimiser's saved state; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return sha256_of_file(Path(path))
    except (OSError, RecordError) as error:
        raise InputError(
            field="optimizer",
            must="be a file that torch.save wrote, such as optimizer.pt",
            got=f"but {path}: {getattr(error, 'strerror', None) or error}",
        ) from error


def adam_scales(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return factors that take gradients into the geometry of Adam, from its saved state: (√v̂ + ε)^(-1/2) for each
    entry.

    Adam steps by m / (√v̂ + ε). In coordinates θ = D^(1/2) φ with D = 1/(√v̂ + ε) that is a plain gradient step: the
    gradient there is D^(1/2) g, inner products are ⟨g, D g'⟩, and the curvature is D^(1/2) H D^(1/2), which is what
    limits Adam's step. So pool and validation are rescaled alike.

    Args:
        path: what `torch.save(optimizer.state_dict(), path)` wrote, as transformers' Trainer does (optimizer.pt).
        model: whose trainable parameters the optimiser had.

    Returns:
        by parameter name, float32, of the parameter's shape.

    Raises:
        ValueError: the file is no such state, holds more than tensors and numbers, or belongs to another model.

    Source: Adam (arXiv:1412.6980), bias-corrected v̂ = v / (1 − β₂^t); the coordinates are ours.
    """
    return {
        name: _scale(entry, group, name, parameter, path) for name, entry, group, parameter in _entries(path, model)
    }


def adam_moments(path: Path, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return Adam's first and second moment of each trainable parameter, and the steps behind them, from its saved
    state.

    Args, errors: as for `adam_scales`.
    """
    found = {}
    for name, entry, _, parameter in _entries(path, model):
        check_moments(entry, name, parameter, path)
        found[name] = entry["exp_avg"], entry["exp_avg_sq"], float(entry["step"])
    return found


def _entries(path: Path, model: nn.Module) -> Iterator[tuple[str, Any, Mapping[str, Any], nn.Parameter]]:
    """List each trainable parameter: its name, its entry in the file, that entry's group, and itself."""
    try:
        state = load_saved(path)
        groups, entry_of = state["param_groups"], state["state"].get
        counts = [len(group["params"]) for group in groups]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} must be the state_dict of an Adam optimiser, written by torch.save: {_first_line(error)}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} must hold tensors and numbers alone, and code in it is never run") from error
    parameters = dict(model.named_parameters())
    for group, names in zip(groups, _names_by_group(groups, counts, model, path), strict=True):
        for name, key in zip(names, group["params"], strict=True):
            yield name, entry_of(key), group, parameters[name]


def _scale(entry: Any, group: Mapping[str, Any], name: str, parameter: Tensor, path: Path) -> Tensor:
    check_moments(entry, name, parameter, path, needed=("exp_avg_sq",))
    moment = entry["exp_avg_sq"]
    if missing := [key for key in ("betas", "eps") if key not in group]:
        raise ValueError(f"{path} must hold {missing[0]} for {name}: was it written by Adam or AdamW?")
    corrected = moment.float() / (1 - group["betas"][1] ** float(entry["step"]))
    scale: Tensor = (corrected.sqrt() + group["eps"]).rsqrt()
    return scale


def check_moments(
    entry: Any, name: str, parameter: Tensor, path: Path, needed: Sequence[str] = ("exp_avg", "exp_avg_sq")
) -> None:
    """See that a parameter's entry in a saved state is one of Adam, of this parameter, and undamaged.

    Args:
        entry: the parameter's own state.
        name: of the parameter.
        path: of the file, to be named.
        needed: the moments that must be there.

    Raises:
        ValueError: a moment or the step is missing, not finite or below 0, or a moment has another shape.
    """
    keys = (*needed, "step")
    if not isinstance(entry, Mapping) or not set(keys) <= set(entry):
        raise ValueError(f"{path} must hold {' and '.join(keys)} for {name}: was it written by Adam or AdamW?")
    for key in needed:
        moment = entry[key]
        shape = getattr(moment, "shape", None)
        if shape != parameter.shape:
            had = "no tensor" if shape is None else f"shape {tuple(shape)}"
            raise ValueError(
                f"{path} holds a state of {had} where {name} of the model has {tuple(parameter.shape)}: it "
                "belongs to another model, or to parameters in another order"
            )
        if not bool(torch.isfinite(moment).all()):
            raise ValueError(f"{path} must hold finite moments, but {key} of {name} is NaN or infinite: it is damaged")
    if bool((entry["exp_avg_sq"] < 0).any()):
        raise ValueError(f"{path} must hold second moments of at least 0, but {name} has one below: it is damaged")
    try:
        step = float(entry["step"])
    except (TypeError, ValueError, RuntimeError):  # of a tensor of several entries
        step = math.nan
    if not 1 <= step < math.inf:
        raise ValueError(f"{path} must hold the number of steps, but for {name} it is {step:g}: it is damaged")


def trainer_groups(model: nn.Module) -> list[list[str]]:
    """Return the trainable parameters' names in the two groups of transformers' Trainer: with weight decay, and
    without.
    """
    from transformers.trainer_pt_utils import get_parameter_names  # which takes a second

    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = set(get_parameter_names(model, [nn.LayerNorm], _UNDECAYED))
    return [[name for name in trainable if name in decayed], [name for name in trainable if name not in decayed]]


def _names_by_group(groups: list[Any], counts: list[int], model: nn.Module, path: Path) -> list[list[str]]:
    """Match the optimiser's indices to parameters: by its own names, or by the order of construction."""
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if all("param_names" in group for group in groups):
        named = [[re.sub(r"^module\.", "", name) for name in group["param_names"]] for group in groups]
        if {name for names in named for name in names} == set(trainable):
            return named
    for order in ([trainable], trainer_groups(model)):
        if [len(names) for names in order] == counts:
            return order
    raise ValueError(
        f"{path} must be the state of an optimiser of this model's {len(trainable)} trainable parameters, in one group "
        f"or in the two of transformers' Trainer, or with param_names; its groups have {counts}"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
