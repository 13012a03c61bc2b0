"""The model as a function of its parameters, given back as it came.

B samples, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from direct_anneal.model.borrowing import in_evaluation_mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn off dropout, and fused kernels of attention, which cannot be differentiated twice."""
    with in_evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False):
        yield


def logits(model: nn.Module, ids: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """Predict tokens, (B, T, V) for (B, T), with these tensors in the place of the parameters of those names."""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    out: Tensor = functional_call(model, dict(parameters or {}), kwargs={"input_ids": ids, **options}).logits
    return out
