"""Small models, saved as distributed checkpoints under the names of one trainer or another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def model_of(family: str, **options: Any) -> nn.Module:
    """A model with random weights, of norms too."""
    torch.manual_seed(0)
    configs = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    config = configs[family](**SIZES, **({"head_dim": 16} if family == "qwen3" else {}), **options)
    model = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}[family](config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adam_after_steps(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW after three steps on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-7)
    for seed in range(3):
        tokens = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(seed))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def torchtitan_name(name: str, *, old: bool) -> str:
    """By the tables of its adapters, one by one."""
    qkv = "attention." if old else "attention.qkv_linear."
    for ours, theirs in (
        ("model.embed_tokens.", "tok_embeddings."),
        ("model.norm.", "norm."),
        ("lm_head.", "output." if old else "lm_head."),
        ("self_attn.q_proj.", f"{qkv}wq."),
        ("self_attn.k_proj.", f"{qkv}wk."),
        ("self_attn.v_proj.", f"{qkv}wv."),
        ("self_attn.o_proj.", "attention.wo."),
        ("self_attn.", "attention."),
        ("mlp.gate_proj.", "feed_forward.w1."),
        ("mlp.up_proj.", "feed_forward.w3."),
        ("mlp.down_proj.", "feed_forward.w2."),
        ("input_layernorm.", "attention_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
    ):
        name = name.replace(ours, theirs)
    return name.removeprefix("model.")


def torchtitan_rows(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: the pair that torchtitan turns, 2i and 2i + 1 of a head, is i and half + i in Hugging Face's."""
    if not re.search(r"\.[qk]_proj\.", name):
        return tensor
    size = len(tensor) // heads
    rows = []
    for head in range(heads):
        for i in range(size // 2):
            rows += [head * size + i, head * size + size // 2 + i]
    return tensor[rows]


def save(directory: Path, state: dict[str, Any]) -> Path:
    """With torch's own writer, by one process."""
    dcp.save(state, checkpoint_id=directory, no_dist=True)
    return directory


def torchtitan_state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, old: bool) -> dict[str, Any]:
    """A training state as torchtitan saves it: weights at the top, the optimiser's state flat below it."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def theirs(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if config.model_type != "llama" or tensor.ndim == 0:
            return tensor
        return torchtitan_rows(name, tensor, next((n for key, n in heads.items() if key in name), 1))

    weights: dict[str, torch.Tensor] = dict(model.state_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    state: dict[str, Any] = {torchtitan_name(n, old=old): theirs(n, weight) for n, weight in weights.items()}
    if optimizer is not None:
        flat = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
        renamed = {}
        for key, value in flat.items():
            kind, rest = key.split(".", 1)
            name, field = rest.rsplit(".", 1)
            if isinstance(value, torch.Tensor):
                value = theirs(name, value)
            renamed[f"{kind}.{torchtitan_name(name, old=old)}.{field}"] = value
        state["optimizer"] = renamed
    return state | {"train_state": {"step": torch.tensor(3)}, "dataloader": {"dp_rank_0": b"anything"}}
