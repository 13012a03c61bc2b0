"""Loss functions of users: 16-bit losses, samples that require gradients, and signatures that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from direct_anneal import DirectSelector
from direct_anneal.gradients import GradientSketcher

SHOWN = r"define loss_fn\(model, batch\) -> losses"
GENERATOR = torch.Generator().manual_seed(0)
SAMPLES = [(torch.randn(4, generator=GENERATOR), torch.tensor(place % 3)) for place in range(5)]


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def sketcher() -> GradientSketcher:
    torch.manual_seed(0)
    return GradientSketcher(nn.Linear(4, 3), 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_of_any_precision(sketcher: GradientSketcher, dtype: torch.dtype) -> None:
    expected = sketcher.sketch_samples(SAMPLES, losses).values
    found = sketcher.sketch_samples(SAMPLES, lambda model, batch: losses(model, batch).to(dtype))
    assert found.losses.dtype == found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, expected)  # the cast is the loss's last step: its slope is 1


def test_samples_may_require_gradients(sketcher: GradientSketcher) -> None:
    expected = sketcher.sketch_samples(SAMPLES, losses).values
    asking = [(x.clone().requires_grad_(), y) for x, y in SAMPLES]
    torch.testing.assert_close(sketcher.sketch_samples(asking, losses).values, expected)
    assert not any(x.grad is not None for x, _ in asking)


@pytest.mark.parametrize(
    ("loss_fn", "says"),
    [
        (lambda model: model, r"must take \(model, batch\), but takes \(model\)"),
        (lambda model, x, y: model, r"but takes \(model, x, y\)"),
        ("cross_entropy", "must be a function, got str"),
        (lambda model, batch: losses(model, batch).mean(), r"one loss for each of \d samples, got shape \(\)"),
        (lambda model, batch: 0.0, "got float"),
        (lambda model, batch: torch.ones(len(batch[1]), dtype=torch.int64), "floating-point losses, got torch.int64"),
        (lambda model, batch: losses(model, batch).detach(), "depend on the model's parameters"),
    ],
)
def test_others_are_told_what_it_looks_like(sketcher: GradientSketcher, loss_fn: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says}.*{SHOWN}"):
        sketcher.sketch_samples(SAMPLES, loss_fn)


@pytest.mark.parametrize("given", [[[1, 2, 3]], {"input_ids": [[1, 2, 3]]}, np.ones((1, 3), np.int64)])
def test_token_ids_are_a_tensor(sketcher: GradientSketcher, given: Any) -> None:
    with pytest.raises(ValueError, match=r"^input_ids must be a tensor of shape \(B, T\), got (list|dict|ndarray)$"):
        sketcher.sketch(given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_token_ids_are_integers(sketcher: GradientSketcher, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="input_ids must be integers, got torch"):
        sketcher.sketch(torch.ones(1, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_selector_takes_tensors_as_they_come(dtype: torch.dtype) -> None:
    pool, validation = (torch.randn(n, 8, generator=GENERATOR).to(dtype).requires_grad_() for n in (30, 20))
    chosen = DirectSelector(num_selected=5).fit(validation).select(pool)
    arrays = [tensor.detach().double().numpy() for tensor in (validation, pool)]
    expected = DirectSelector(num_selected=5).fit(arrays[0]).select(arrays[1])
    np.testing.assert_array_equal(chosen.indices, expected.indices)
