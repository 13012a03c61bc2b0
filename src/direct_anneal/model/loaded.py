"""Instances of classes whose modules take a second or more to import: where those are not loaded, there are none."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def is_instance(thing: object, module: str, name: str) -> bool:
    """True for an instance of a module's class; the module is not imported."""
    loaded: Any = sys.modules.get(module)
    return loaded is not None and isinstance(thing, getattr(loaded, name, ()))


def is_conv1d(module: nn.Module) -> bool:
    """True for the linear layer of transformers' GPT-2, which holds its weights as (in, out)."""
    return is_instance(module, "transformers.pytorch_utils", "Conv1D")


def is_linear(module: nn.Module) -> bool:
    """True for a linear layer, whichever way its weights are held."""
    return isinstance(module, nn.Linear) or is_conv1d(module)
