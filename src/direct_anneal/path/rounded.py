"""Weights of 8 bits for scoring: a quarter of the memory where a model is only read with.

Each linear layer's weights become integers from −127 to 127 with one scale for each output. Activations stay as they
are: quantised with one range for a whole batch, as dynamic quantisation does it, a document's loss would depend on what
shares its batch.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from direct_anneal.model.loaded import is_conv1d, is_linear

_LARGEST = 127


class Rounded(nn.Module):
    """A linear layer with rounded weights, W ≈ diag(scales) · codes.

    Args:
        layer: whose weights and bias; `Conv1D` holds its weights as (in, out).
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._is_transposed = is_conv1d(layer)
        self.bias = layer.bias
        self.register_buffer("codes", torch.empty(0, dtype=torch.int8, device=layer.weight.device))
        self.register_buffer("scales", torch.empty(0, device=layer.weight.device))
        self.put(layer.weight)

    def put(self, weight: Tensor) -> None:
        """Take other weights, of the layer's own shape."""
        rows = (weight.T if self._is_transposed else weight).detach().to(self.codes.device, torch.float32)
        largest = rows.abs().amax(dim=1)
        self.scales = torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))
        self.codes = (rows / self.scales[:, None]).round().to(torch.int8)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (..., in) → (..., out)."""
        found = nn.functional.linear(inputs, self.codes.to(inputs.dtype)) * self.scales.to(inputs.dtype)
        return found if self.bias is None else found + self.bias


def round_weights(model: nn.Module) -> nn.Module:
    """Put `Rounded` in the place of every linear layer, in the model itself; a head that is the embedding stays."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for parent in [*model.modules()]:
        for name, layer in [*parent.named_children()]:
            if is_linear(layer) and owners[id(layer.weight)] == 1:
                setattr(parent, name, Rounded(layer))
    return model
