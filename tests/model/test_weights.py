"""Checkpoints whose weights and configuration are not one another's: each is refused by name, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))


def configure(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def change(directory: Path, by: Change, *, pickled: bool = False) -> None:
    weights = load_file(directory / "model.safetensors")
    by(weights)
    if pickled:
        (directory / "model.safetensors").unlink()
        torch.save(weights, directory / "pytorch_model.bin")
    else:
        save_file(weights, directory / "model.safetensors", {"format": "pt"})


def load(directory: Path) -> torch.nn.Module:
    return Checkpoint(str(directory)).load_model("cpu", "float32")


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as refused:
        load(directory)
    message = str(refused.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("by", "says"),
    [
        (lambda w: w.pop("model.norm.weight"), "lacks 1 (model.norm.weight)"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}), "self_attn.q_proj.bias"),
        (lambda w: w.update({"model.layers.2.input_layernorm.weight": torch.ones(16)}), "layers.2.input_layernorm"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(17)}),
            "model.norm.weight is (17,) in the files and (16,)",
        ),
    ],
    ids=["missing", "bias-too-many", "layer-too-many", "shape"],
)
def test_what_does_not_fit(copy: Path, by: Change, says: str, pickled: bool) -> None:
    change(copy, by, pickled=pickled)
    assert says in refusal(copy)


def test_layers_that_the_configuration_forgets(copy: Path) -> None:
    configure(copy, num_hidden_layers=1)
    message = refusal(copy)
    assert "holds 9 that its config.json has no place for" in message
    assert "model.layers.1.input_layernorm.weight" in message


def test_buffers_of_older_versions_are_no_weights(copy: Path) -> None:
    change(copy, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(copy)


class TestTiedHeads:
    def test_may_be_left_out(self, copy: Path) -> None:
        configure(copy, tie_word_embeddings=True)
        change(copy, lambda weights: weights.pop("lm_head.weight"))
        model: Any = load(copy)
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_may_be_written_twice(self, copy: Path) -> None:
        configure(copy, tie_word_embeddings=True)
        change(copy, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
        load(copy)

    def test_are_not_two(self, copy: Path) -> None:
        configure(copy, tie_word_embeddings=True)
        assert "tie_word_embeddings" in refusal(copy)

    def test_are_needed_where_they_are_not_tied(self, copy: Path) -> None:
        change(copy, lambda weights: weights.pop("lm_head.weight"))
        assert "lm_head.weight" in refusal(copy)


class TestQuantised:
    @pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
    def test_as_the_configuration_says(self, copy: Path, method: str) -> None:
        configure(copy, quantization_config={"quant_method": method})
        message = refusal(copy)
        assert f"quantised (quantization_config says {method})" in message
        assert "dequantize" in message

    @pytest.mark.parametrize(
        "by",
        [
            lambda w: w.update({"model.norm.weight": w["model.norm.weight"].to(torch.float8_e4m3fn)}),
            lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(256, 1, dtype=torch.uint8)}),
            lambda w: w.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(2, 32, dtype=torch.int32)}),
            lambda w: w.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}),
        ],
    )
    def test_as_the_tensors_say(self, copy: Path, by: Change) -> None:
        change(copy, by)
        assert "is quantised (there is model." in refusal(copy)


class TestAdapters:
    def test_alone(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
        with pytest.raises(InputError, match=r"PEFT adapter for org/base .*merge_and_unload"):
            Checkpoint(str(tmp_path))

    def test_beside_a_model(self, copy: Path) -> None:
        (copy / "adapter_config.json").write_text("{}")
        with pytest.raises(InputError, match="merge_and_unload"):
            Checkpoint(str(copy))


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": -1},
        {"vocab_size": 10**12},
        {"vocab_size": 2**31},
        {"vocab_size": None},
        {"hidden_size": -16},
        {"hidden_size": 2**24},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "two"},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "nonesuch"}},
        {"model_type": "gpt2", "n_positions": 2**31},
    ],
    ids=str,
)
def test_sizes_that_no_model_has(copy: Path, values: dict[str, Any]) -> None:
    configure(copy, **values)
    refusal(copy)


def test_more_than_all_memory_is_not_begun(copy: Path) -> None:
    configure(copy, vocab_size=2**31, hidden_size=2**20)
    (copy / "model.safetensors").unlink()  # no shapes to compare
    assert "GiB" in refusal(copy)
