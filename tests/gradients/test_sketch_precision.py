"""Half precision, and gradients that are not finite.

B samples, T tokens, R sketch size.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from direct_anneal.gradients import GradientSketcher, ProjectionName, SlowPathWarning
from gradients.tiny_models import FAMILIES, V, expected, gap, gpt2, llama, padded, samples, toy

R = 48
MARKED = 7  # the token whose embedding is damaged


@pytest.mark.parametrize(
    ("family", "projection"), [*((family, "two-sided") for family in FAMILIES), ("llama", "gaussian")]
)
def test_bfloat16_is_close_to_float32_of_the_same_weights(family: str, projection: ProjectionName) -> None:
    half = FAMILIES[family]().bfloat16()
    batch = padded(samples(12, 7, 2, 9))
    sketcher = GradientSketcher(half, R, projection)
    low = sketcher.sketch(*batch)
    full = GradientSketcher(copy.deepcopy(half).float(), R, projection).sketch(*batch)
    assert low.values.dtype == low.losses.dtype == low.norms.dtype == torch.float32
    assert sketcher.slow_parameters == ()
    # Each of some ten operations in a row rounds to 2⁻⁹ = 0.002 of its result; the worst family showed 0.026.
    assert gap(low.values, full.values) < 0.1
    torch.testing.assert_close(low.losses, full.losses, rtol=0.02, atol=0)


def test_sums_over_long_samples_do_not_round_to_half_precision() -> None:
    """A bias's gradient is a sum over tokens: in bfloat16 it would stop growing at 256 terms of one size."""
    half = toy().bfloat16()
    [row] = samples(1500)
    low = GradientSketcher(half, R).sketch(row[None])
    full = GradientSketcher(copy.deepcopy(half).float(), R).sketch(row[None])
    # As above; a sum that stops growing loses most of its length.
    assert gap(low.values, full.values) < 0.1


def test_float16_gradients_of_long_samples_do_not_underflow() -> None:
    """The mean loss of 1,500 tokens has gradients near 1e-5 at each: float16 keeps few digits below 6e-5."""
    half = toy().half()
    [row] = samples(1500)
    low = GradientSketcher(half, R).sketch(row[None])
    full = GradientSketcher(copy.deepcopy(half).float(), R).sketch(row[None])
    # float16 rounds to 2⁻¹¹ = 0.0005.
    assert gap(low.values, full.values) < 0.02


def damaged(model: nn.Module, token: int, value: float) -> nn.Module:
    with torch.no_grad():
        model.get_input_embeddings().weight[token, 0] = value
    return model


@pytest.mark.parametrize(("projection", "value"), [("two-sided", math.nan), ("gaussian", math.inf)])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("token", [MARKED, 0])
def test_only_the_samples_concerned_are_not_finite(
    token: int, family: str, value: float, projection: ProjectionName
) -> None:
    """Token 0 too: it is what a batch is commonly padded with."""
    model = FAMILIES[family]()
    if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # else every logit is lost
    rows = [torch.where(row == token, 1, row) for row in samples(9, 12, 7, 4)]
    clean = GradientSketcher(model, R, projection).sketch(*padded(rows))
    rows[1] = rows[1].clone()
    rows[1][3] = token
    sketches = GradientSketcher(damaged(model, token, value), R, projection).sketch(*padded(rows))
    others = [0, 2, 3]
    assert not torch.isfinite(sketches.values[1]).all()
    assert not torch.isfinite(sketches.norms[1])
    # The rows went through the same products, where a row that is lost changes none of the others.
    torch.testing.assert_close(sketches.values[others], clean.values[others], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sketches.losses[others], clean.losses[others], rtol=1e-6, atol=0)


def test_a_sample_that_is_not_finite_does_not_spend_the_check() -> None:
    """Its neighbours go the same way unchecked, unless another sample is checked in its place."""
    model = damaged(llama(), MARKED, math.nan)
    sketcher = GradientSketcher(model, R)
    sound = [torch.where(row == MARKED, 1, row) for row in samples(9, 5)]
    sketches = sketcher.sketch(*padded([torch.full((9,), MARKED), *sound]))
    assert gap(sketches.values[1:], expected(sketcher, sound)) < 1e-5  # float32 against float64, as everywhere


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_of_lost_samples_alone_is_survived(value: float) -> None:
    sketcher = GradientSketcher(damaged(llama(), MARKED, value), R)
    lost = sketcher.sketch(torch.full((2, 5), MARKED))
    assert not torch.isfinite(lost.norms).any()
    assert lost.num_tokens.tolist() == [4, 4]
    sound = [torch.where(row == MARKED, 1, row) for row in samples(9, 5)]
    assert gap(sketcher.sketch(*padded(sound)).values, expected(sketcher, sound)) < 1e-5


def test_the_slow_path_keeps_lost_samples_apart_too() -> None:
    model = gpt2()
    model.lm_head = nn.Linear(model.config.n_embd, V, bias=False)  # untied from the damaged embedding
    model.transformer.ln_f.register_parameter("gain", nn.Parameter(torch.ones(1)))
    model.transformer.ln_f.register_forward_hook(lambda module, _, output: output * module.gain)
    damaged(model, MARKED, math.nan)
    sketcher = GradientSketcher(model, R)
    rows = [torch.where(row == MARKED, 1, row) for row in samples(9, 7, 4)]
    lost = rows[1].clone()
    lost[2] = MARKED
    with pytest.warns(SlowPathWarning, match="gain"):
        sketches = sketcher.sketch(*padded([rows[0], lost, rows[2]]))
    assert not torch.isfinite(sketches.norms[1])
    assert gap(sketches.values[[0, 2]], expected(sketcher, [rows[0], rows[2]])) < 1e-5
