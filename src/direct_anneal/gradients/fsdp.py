"""Models of which every process holds a part of each weight: `torch.distributed.fsdp.fully_shard`.

Hooks of FSDP gather a layer's weights before its forward and backward pass, and let them go afterwards. Sketches are
made from what flows through the layers alone, so that no more than that is needed: nothing is reduced between
processes, and each may sketch a batch of its own. All must make as many calls, since weights are gathered together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from direct_anneal.model.loaded import is_instance

Shared = TypeVar("Shared")


def spread(model: nn.Module, device: torch.device) -> nn.Module:
    """Spread a model over all processes of the group, a layer at a time; it is changed.

    Args:
        device: where its parts are to lie; the model may lie elsewhere, so that it need not fit there as a whole.

    Memory: a part of the model and one whole layer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists of modules: a transformer's layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """True if any parameter is spread over several processes."""
    return any(_is_part(parameter) for parameter in parameters)


def _is_part(tensor: Tensor) -> bool:
    return is_instance(tensor, "torch.distributed.tensor", "DTensor")


def of_the_first(value: Shared, device: torch.device) -> Shared:
    """Broadcast the value of the first process to all."""
    values = [value]
    dist.broadcast_object_list(values, device=device)
    return values[0]


def differentiate(roots: Tensor, slopes: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients of sharded parameters, spread as they are; the mean over processes, which is each's own if all
    are the same. None where a parameter has no part in them.

    FSDP gives gradients to the parameters' `.grad` alone; what was there before is put back.
    """
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        torch.autograd.backward(roots, slopes)
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be spread over processes, gathered on each of them."""
    found: Any = tensor
    gathered: Tensor = found.full_tensor() if _is_part(tensor) else tensor
    return gathered


def reshard(model: nn.Module) -> None:
    """Shard all weights again: the root's stay whole after a forward pass that no backward pass follows."""
    for module in model.modules():
        if is_instance(module, "torch.distributed.fsdp", "FSDPModule"):
            sharded: Any = module
            sharded.reshard()
