"""Every causal architecture that the installed transformers can build small: sketched right, or refused in one line.

A third of them, chosen by name, unless DIRECT_ANNEAL_ALL_ARCHITECTURES is set.
"""

from __future__ import annotations

import inspect
import os
import warnings
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from direct_anneal.errors import InputError
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.probes import predictions, require_language_model
from gradients.tiny_models import exact_gradients, perturbed

R = 32
VOCAB = 64
ROUNDING = 1e-5  # of a sample's gradient; sketches are float32, and so are parts of some models
MOST_PARAMETERS = 2_000_000
ALL = bool(os.environ.get("DIRECT_ANNEAL_ALL_ARCHITECTURES"))

# Sizes that make a model small, by the names that configurations use.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "d_ff": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "ffn_hidden_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "n_groups": 1,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "lru_width": 32,
    "attention_window_size": 16,
    "sliding_window": 16,
    "attention_chunk_size": 32,
    "rotary_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NUM_LAYERS = 2  # lists by layer are cut to as many


def small_config(model_type: str, *, with_head_dim: bool) -> Any:
    """A configuration with every size that it knows made small; ValueError and the like where it has no such form."""
    default = AutoConfig.for_model(model_type)
    inner = default.get_text_config()
    kind = type(inner)
    known = {**inner.to_dict(), **dict.fromkeys(inspect.signature(kind.__init__).parameters)}
    settings = {name: value for name, value in SMALL.items() if name in known or name in (kind.attribute_map or {})}
    if not with_head_dim:  # which some have beside the width, and some make of it
        settings.pop("head_dim", None)
    if "qk_rope_head_dim" in known:  # which the rotary head's is
        settings["head_dim"] = settings["qk_rope_head_dim"]
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    for name in ("layer_types", "layers_block_type", "block_types", "_block_types"):
        layers = known.get(name)
        if isinstance(layers, list | tuple) and layers:
            different = list(dict.fromkeys(layers))[-NUM_LAYERS:]
            settings[name] = different if len(different) == NUM_LAYERS else [layers[-1]] * NUM_LAYERS
    for name, value in {"attn_layer_indices": [1], "attn_layer_period": 2, "attn_layer_offset": 1}.items():
        if name in known:
            settings[name] = value
    if "attention_types" in known:
        settings["attention_types"] = [[["global", "local"], 1]]
    if "is_decoder" in known and model_type == "reformer":
        settings["is_decoder"] = True
    if "decoder_layers" in settings:
        settings["is_decoder"] = True
    return kind(**settings)


def build(model_type: str, *, with_head_dim: bool) -> nn.Module:
    torch.manual_seed(0)
    config = small_config(model_type, with_head_dim=with_head_dim)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are too many: a size has another name")
    model = AutoModelForCausalLM.from_config(config).double()  # so that a gap is a mistake, not rounding
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product has no float64
    model.config.use_cache = False
    return perturbed(model)


def types() -> list[str]:
    everything = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return everything if ALL else [name for name in everything if zlib.crc32(name.encode()) % 3 == 0]


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in (9, 6)]


@pytest.mark.parametrize("model_type", types())
def test_right_or_refused(model_type: str) -> None:
    refusal = None
    model = None
    for with_head_dim in (True, False):
        try:
            model = build(model_type, with_head_dim=with_head_dim)
            predictions(model, rows()[0][None])
            break
        except Exception as error:
            model, reason = None, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    if model is None:
        pytest.skip(f"no tiny {model_type}: {reason}")
    try:
        require_language_model(model, vocab_size=VOCAB, window=16, name=model_type)
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        pytest.skip(f"{model_type} is refused: {refusal}")
    sketcher = GradientSketcher(model, R)
    ids = torch.full((2, 9), 3)
    mask = torch.zeros(2, 9, dtype=torch.int64)
    for row, tokens in enumerate(rows()):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = sketcher.sketch(ids, mask).values
    exact = torch.from_numpy(exact_gradients(model, rows()))
    sizes = [parameter.numel() for parameter in sketcher.parameters.values()]
    sketcher.projection.begin(2)
    for name, part in zip(sketcher.parameters, exact.split(sizes, dim=1), strict=True):
        sketcher.projection.full(name, part.reshape(2, *sketcher.parameters[name].shape))
    expected = sketcher.projection.finish()
    gaps = (values - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(gaps.max()) < ROUNDING, f"{model_type}: {gaps.tolist()}"
