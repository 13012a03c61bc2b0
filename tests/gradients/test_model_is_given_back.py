"""The model after sketching is the model before: mode, gradients, hooks and random numbers."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from direct_anneal.gradients import GradientSketcher, SlowPathWarning
from gradients.tiny_models import FAMILIES, expected, gap, gpt2, llama, mixtral, padded, samples

R = 32
ROUNDING = 1e-5  # of ‖z‖, float32 against float64; less than 1e-6 was seen

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def borrowed_state(model: nn.Module) -> dict[str, Any]:
    """Everything that sketching touches, or might."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "identity": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "hooks": {name: [len(getattr(module, kind)) for kind in HOOKS] for name, module in model.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


def strange_state(model: nn.Module) -> nn.Module:
    """Modes, frozen parameters and hooks that no reset to a default would give back."""
    model.train()
    for position, module in enumerate(model.modules()):
        module.training = position % 3 == 0
    for position, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(position % 4 != 1)
    next(model.children()).register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_the_model_comes_back_as_it_was(family: str) -> None:
    model = strange_state(mixtral() if family == "mixtral" else FAMILIES[family]())
    before, weights = borrowed_state(model), copy.deepcopy(model.state_dict())
    sketcher = GradientSketcher(model, R)
    for _ in range(2):  # the first batch is checked, the second not
        sketcher.sketch(*padded(samples(9, 4)))
        assert borrowed_state(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_model_comes_back_after_a_failure(family: str, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = strange_state(mixtral() if family == "mixtral" else llama())
    sketcher = GradientSketcher(model, R)
    batch = padded(samples(9, 4))
    reference = sketcher.sketch(*batch).values if checked else None
    before = borrowed_state(model)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("in the last layer")

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1].mlp, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            sketcher.sketch(*batch)
    assert borrowed_state(model) == before
    values = sketcher.sketch(*batch).values
    assert reference is None or torch.equal(values, reference)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_the_caller_may_have_gradients_off(grad_mode: Any) -> None:
    sketcher = GradientSketcher(llama(), R)
    batch = padded(samples(9, 4))
    with grad_mode():
        before = borrowed_state(sketcher.model)
        values = sketcher.sketch(*batch).values
        assert borrowed_state(sketcher.model) == before
    assert gap(values, expected(sketcher, samples(9, 4))) < ROUNDING


def test_gradients_already_there_stay() -> None:
    model = llama()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    GradientSketcher(model, R).sketch(*padded(samples(9, 4)))
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


def test_dropout_is_off_in_a_model_that_trains() -> None:
    model = gpt2()
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    batch = padded(samples(12, 7))
    in_evaluation = GradientSketcher(model, R).sketch(*batch).values
    model.train()
    sketcher = GradientSketcher(model, R)
    for _ in range(2):
        assert torch.equal(sketcher.sketch(*batch).values, in_evaluation)


@pytest.mark.parametrize(
    "frozen",
    ["lm_head.weight", "layers.0", "norm", "bias", "embed_tokens"],
)
def test_frozen_parameters_are_not_covered_and_cost_nothing(frozen: str, recwarn: pytest.WarningsRecorder) -> None:
    model = FAMILIES["llama-tied-biased" if frozen == "bias" else "llama"]()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    sketcher = GradientSketcher(model, R)
    assert not [name for name in sketcher.parameters if frozen in name]
    rows = samples(12, 7, 2, 9)
    assert gap(sketcher.sketch(*padded(rows)).values, expected(sketcher, rows)) < ROUNDING
    assert sketcher.slow_parameters == ()  # freezing one layer is no reason to be slow in another
    assert not [warning for warning in recwarn if warning.category is SlowPathWarning]


def test_what_is_frozen_later_stays_frozen() -> None:
    model = llama()
    sketcher = GradientSketcher(model, R)
    rows = samples(9, 4)
    reference = expected(sketcher, rows)
    model.lm_head.weight.requires_grad_(False)
    before = borrowed_state(model)
    values = sketcher.sketch(*padded(rows)).values
    assert gap(values, reference) < ROUNDING  # S was fixed when the sketcher was made, and covers it
    assert borrowed_state(model) == before


def test_what_is_unfrozen_later_gathers_no_gradient() -> None:
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    sketcher = GradientSketcher(model, R)
    rows = samples(9, 4)
    reference = expected(sketcher, rows)
    model.lm_head.weight.requires_grad_(True)
    before = borrowed_state(model)
    assert gap(sketcher.sketch(*padded(rows)).values, reference) < ROUNDING
    assert borrowed_state(model) == before
