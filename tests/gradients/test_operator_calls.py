"""Operator calls of a batch, as a GPU would see them: a device without numbers takes the same path.

On it nothing can be read back, so that a batch that runs there waits for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils
from transformers.pytorch_utils import Conv1D

from direct_anneal.gradients import GradientSketcher

V, B, T, R = 512, 4, 64, 256
LAYERS = 6
# Wider than a factor's places, so that every side is projected.
SIZES = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0}
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "unsqueeze"}
VIEWS |= {"split_with_sizes", "squeeze", "detach", "alias", "as_strided", "unbind"}
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "_unique2", "masked_select"}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=128, n_layer=LAYERS, n_head=2, n_positions=T, **SIZES)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        **SIZES,
    )
    return transformers.LlamaForCausalLM(config)


class Calls(TorchDispatchMode):
    """Counts what reaches a device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def launched(self) -> int:
        """All but what is done on the shape of a tensor alone."""
        return sum(count for name, count in self.found.items() if name not in VIEWS)


def counted(act: Callable[[], object]) -> Calls:
    with Calls() as calls:
        act()
    return calls


def frozen(model: nn.Module, ids: Tensor) -> Calls:
    """A forward and backward pass without weight gradients."""
    targets = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    model.requires_grad_(False)
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())

    def run() -> None:
        logits = model(input_ids=ids, use_cache=False).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()

    try:
        return counted(run)
    finally:
        handle.remove()
        model.requires_grad_(True)


def needed(model: nn.Module) -> int:
    """Count what capturing cannot do without: a matrix takes two projections and a product over tokens for each use, a
    bias a sum, a norm's weight a product and a sum.
    """
    total = 0
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            total += 3 + ("bias" in own)
        elif own:
            total += 2 + ("bias" in own)
    return total


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_batch_takes_few_calls_more_than_it_must_and_waits_for_nothing(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers looks at position ids in every forward pass, the bare one's too, and waits for the answer.
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    torch.manual_seed(0)
    model = build().bfloat16().eval()
    ids = torch.randint(V, (B, T))
    here = GradientSketcher(model, R)
    here.sketch(ids)  # checks the model
    sketching = counted(lambda: here.sketch(ids))
    assert not SYNCHRONISING & set(sketching.found)
    floor = frozen(model, ids).launched  # here attention is one call, as on a GPU

    model.to("meta")
    model.tie_weights()
    there = GradientSketcher(model, R)
    there._capture, there._checked = here._capture, True
    there.sketch(ids)  # keeps its projections
    extra = counted(lambda: there.sketch(ids.to("meta"))).launched - frozen(model, ids.to("meta")).launched
    assert floor + extra <= 1.25 * (floor + needed(model)), (floor, extra, needed(model))
