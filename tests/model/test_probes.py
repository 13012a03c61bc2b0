"""Models that are no causal language models, or whose predictions hang on the batch: refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from direct_anneal.errors import InputError
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.lengths import length_switches, longest_alike
from direct_anneal.model.probes import require_language_model
from gradients.tiny_models import (
    FAMILIES,
    WIDTH,
    Toy,
    V,
    exact_gradients,
    expected,
    gap,
    padded,
    perturbed,
    samples,
    toy,
)

SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
ROPE = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 20,
}


def longrope() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "phi3", **ROPE, eos_token_id=2, original_max_position_embeddings=20, rope_parameters=dict(LONGROPE)
    )
    return perturbed(transformers.AutoModelForCausalLM.from_config(config))


def dynamic() -> nn.Module:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    return perturbed(transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROPE, rope_parameters=rope)))


def require(model: nn.Module, window: int = 64) -> None:
    require_language_model(model, vocab_size=V, window=window, name="tiny")


class Peeks(Toy):
    """One token ahead."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) + 0.1 * torch.nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


class Mixes(Toy):
    """Normalised over the batch."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) - 0.1 * x.mean((0, 1), keepdim=True).detach() * (len(x) > 1)


class CountsTheLongest(Toy):
    """Other numbers beside long neighbours, beyond what a short check sees."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) * (1.5 if x.shape[1] > 40 else 1.0)


class Draws(Toy):
    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x) + torch.randn(x.shape)


class Flat(Toy):
    """Logits without a place for each token."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(input_ids).logits[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_models_pass(family: str) -> None:
    require(FAMILIES[family](), window=32)
    require(FAMILIES[family]().bfloat16(), window=32)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Peeks, "earlier predictions of tiny move with a later token"),
        (Mixes, "alike alone and beside others"),
        (CountsTheLongest, "alike alone and beside others"),
        (Draws, "draws random numbers"),
        (Flat, "logits of shape"),
    ],
)
def test_others_are_refused_by_name(kind: type[Toy], says: str) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        require(toy(kind))
    assert "\n" not in str(refusal.value)


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, intermediate_size=24, max_position_embeddings=64)
    return perturbed(transformers.BertLMHeadModel(config))


def test_bert_is_none() -> None:
    with pytest.raises(InputError, match="earlier predictions of tiny move"):
        require(bert())
    with pytest.raises(ValueError, match="earlier predictions of BertLMHeadModel move"):
        GradientSketcher(bert(), 16).sketch(*padded(samples(5, 7)))


def test_a_checkpoint_is_asked_as_it_is_loaded(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    with pytest.raises(InputError, match="bert move with a later token"):
        Checkpoint(str(tmp_path / "bert")).load_model("cpu", "float32")


def test_a_model_is_given_back() -> None:
    model = toy().train()
    require(model)
    assert all(module.training for module in model.modules())


class TestSwitches:
    def test_longrope_is_asked_on_both_sides(self) -> None:
        model = longrope()
        assert length_switches(model) == (20,)
        require(model)

    def test_of_a_window_that_reaches_none(self) -> None:
        assert length_switches(FAMILIES["llama"]()) == ()
        assert length_switches(toy()) == ()

    def test_sketches_of_a_batch_are_those_of_each_alone(self) -> None:
        model = longrope()
        rows = samples(12, 19, 20, 21, 30)
        sketcher = GradientSketcher(model, 32)
        together = sketcher.sketch(*padded(rows))
        assert gap(together.values, expected(sketcher, rows)) < 1e-5
        for row, ids in enumerate(rows):
            alone = sketcher.sketch(ids[None])
            torch.testing.assert_close(together.losses[row], alone.losses[0], rtol=1e-5, atol=1e-6)
            assert together.num_tokens[row] == len(ids) - 1

    def test_the_switch_is_felt(self) -> None:
        """Without this the test above would hold for a model that has none."""
        model = longrope()
        rows = samples(12, 30)
        joint = model(input_ids=padded(rows)[0]).logits[0, :12]
        alone = model(input_ids=rows[0][None]).logits[0]
        assert (joint - alone).norm() > 0.01 * alone.norm()
        assert exact_gradients(model, rows).shape[0] == 2

    def test_dynamic_frequencies_hang_on_the_batch(self) -> None:
        model = dynamic()
        assert longest_alike(model) == 64
        require(model, window=64)
        with pytest.raises(InputError, match="max_length of at most 64"):
            require(model, window=65)
        with pytest.raises(ValueError, match="at most 64 tokens long, got 70"):
            GradientSketcher(model, 16).sketch(*padded(samples(5, 70)))
