"""Adam's geometry: every entry of every gradient rescaled, by what a real optimiser saved.

B samples, T tokens, R sketch size.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from direct_anneal.gradients import GradientSketcher, ProjectionName, SlowPathWarning, adam_moments, adam_scales
from gradients.tiny_models import FAMILIES, exact_gradients, explicit_matrix, gap, gpt2, llama, mixtral, padded, samples

R = 48
ROUNDING = 1e-5  # of ‖z‖, float32 against float64


def random_scales(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: 0.1 + torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}


@pytest.mark.parametrize("projection", ["two-sided", "gaussian"])
@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2", "gemma3", "mixtral"])
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_sketches_are_of_rescaled_gradients(family: str, projection: ProjectionName) -> None:
    model = mixtral() if family == "mixtral" else FAMILIES[family]()
    scales = random_scales(model)
    sketcher = GradientSketcher(model, R, projection, factor_size=6, scales=scales)
    rows = samples(12, 7, 2, 9)
    values = sketcher.sketch(*padded(rows)).values
    plain = explicit_matrix(GradientSketcher(model, R, projection, factor_size=6))  # S without scales
    flat = torch.cat([scales[name].flatten() for name in sketcher.parameters]).double().numpy()
    if family != "mixtral":  # whose grouped products have no float64
        model = model.double()
    assert gap(values, (exact_gradients(model, rows) * flat) @ plain.T) < ROUNDING


def test_scales_cost_no_fast_path(recwarn: pytest.WarningsRecorder) -> None:
    model = gpt2()
    sketcher = GradientSketcher(model, R, scales=random_scales(model))
    sketcher.sketch(*padded(samples(5, 7)))
    assert sketcher.slow_parameters == ()
    assert not [warning for warning in recwarn if warning.category is SlowPathWarning]


def test_every_covered_parameter_needs_a_scale_of_its_shape() -> None:
    model = llama()
    scales = random_scales(model)
    with pytest.raises(ValueError, match=r"1 have none: lm_head\.weight"):
        GradientSketcher(model, R, scales={n: s for n, s in scales.items() if n != "lm_head.weight"})
    GradientSketcher(model, R, parameters=["*mlp*"], scales={n: s for n, s in scales.items() if "mlp" in n})
    with pytest.raises(ValueError, match=r"the scale of lm_head\.weight has shape \(3,\)"):
        GradientSketcher(model, R, scales={**scales, "lm_head.weight": torch.ones(3)})


def trained(model: nn.Module, groups: list[dict[str, Any]], path: Path, steps: int = 3) -> torch.optim.Optimizer:
    """An AdamW that has taken a few steps, its state on disk as transformers' Trainer leaves it."""
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    ids, _ = padded(samples(8, 8))
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    return optimizer


def as_trainer_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The two groups of transformers' own Trainer, asked of the Trainer itself."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # it reads the model alone
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.1},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("grouping", ["one", "trainer", "named"])
@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2"])
def test_scales_are_those_of_the_optimiser(family: str, grouping: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    groups: list[dict[str, Any]] = {
        "one": [{"params": list(model.parameters())}],
        "trainer": as_trainer_groups(model),
        "named": [{"params": [(f"module.{n}", p) for n, p in reversed(list(model.named_parameters()))]}],
    }[grouping]
    optimizer = trained(model, groups, tmp_path / "optimizer.pt")
    scales = adam_scales(tmp_path / "optimizer.pt", model)
    assert scales.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        denominator = (state["exp_avg_sq"].double() / (1 - 0.95**3)).sqrt() + 1e-6  # as in the paper, three steps in
        torch.testing.assert_close(scales[name].double(), denominator**-0.5, rtol=1e-5, atol=0)  # float32 roots


def test_what_is_no_adam_state_is_refused(tmp_path: Path) -> None:
    model = llama()
    path = tmp_path / "optimizer.pt"
    groups = [{"params": list(model.parameters())}]
    with pytest.raises(ValueError, match="must be the state_dict of an Adam optimiser"):
        adam_scales(path, model)
    path.write_bytes(b"not a file of torch's")
    with pytest.raises(ValueError, match="must"):
        adam_scales(path, model)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="must be the state_dict of an Adam optimiser"):
        adam_scales(path, model)
    trained(model, groups, path)
    wider = llama()
    wider.resize_token_embeddings(60)
    with pytest.raises(ValueError, match="belongs to another model"):
        adam_scales(path, wider)
    with pytest.raises(ValueError, match=r"in one group or in the two .* its groups have \[21\]"):
        adam_scales(path, gpt2())
    torch.save(torch.optim.SGD(groups, lr=0.1).state_dict(), path)
    with pytest.raises(ValueError, match=r"exp_avg_sq and step for .*: was it written by Adam"):
        adam_scales(path, model)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("exp_avg_sq", float("nan"), "finite moments"),
        ("exp_avg_sq", float("inf"), "finite moments"),
        ("exp_avg_sq", -1.0, "at least 0"),
        ("exp_avg", float("nan"), "finite moments"),
        ("step", 0.0, "number of steps"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, key: str, value: float, told: str) -> None:
    model, path = llama(), tmp_path / "optimizer.pt"
    trained(model, [{"params": list(model.parameters())}], path)
    state = torch.load(path, weights_only=True)
    state["state"][2][key].view(-1)[0] = value
    torch.save(state, path)
    for read in (adam_moments, adam_scales) if key != "exp_avg" else (adam_moments,):
        with pytest.raises(ValueError, match=told):
            read(path, model)


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("code was run",))


def test_no_code_in_an_optimizer_state_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "optimizer.pt"
    for write in (lambda: torch.save(Payload(), path), lambda: path.write_bytes(pickle.dumps(Payload(), protocol=2))):
        write()
        with pytest.raises(ValueError, match="code in it is never run"):
            adam_scales(path, llama())
    assert capsys.readouterr().out == ""
