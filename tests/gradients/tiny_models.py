"""Tiny random models of every family, toy models of every trap, and what their sketches must be.

B samples, T tokens, D parameters, R sketch size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from direct_anneal.gradients import GradientSketcher

Float = NDArray[np.float64]

V = 50
WIDTH = 16

_SIZES = {"vocab_size": V, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
_ROPE = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": 32}
_GROUPED = {**_ROPE, "num_key_value_heads": 1}
_HEADS = {**_GROUPED, "head_dim": 8}


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, no weight at a special value: norms of 1 and biases of 0 hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def _family(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return perturbed(getattr(transformers, model)(getattr(transformers, config)(**settings)))

    return build


llama = _family("LlamaForCausalLM", "LlamaConfig", **_GROUPED)
gpt2 = _family("GPT2LMHeadModel", "GPT2Config", vocab_size=V, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32)

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama-tied-biased": _family(
        "LlamaForCausalLM", "LlamaConfig", **_GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "gpt2": gpt2,
    "qwen2": _family("Qwen2ForCausalLM", "Qwen2Config", **_GROUPED),
    "qwen3": _family("Qwen3ForCausalLM", "Qwen3Config", **_HEADS),
    "gemma": _family("GemmaForCausalLM", "GemmaConfig", **_HEADS),
    "gemma3": _family("Gemma3ForCausalLM", "Gemma3TextConfig", **_HEADS, sliding_window=4),
    "olmo2": _family("Olmo2ForCausalLM", "Olmo2Config", **_GROUPED),
    "gpt-neox": _family("GPTNeoXForCausalLM", "GPTNeoXConfig", **_ROPE),
    "phi": _family("PhiForCausalLM", "PhiConfig", **_ROPE),
    "mistral": _family("MistralForCausalLM", "MistralConfig", **_GROUPED, sliding_window=4),
}
# Experts whose weights lie in one tensor, two of four for each token.
_MIXED = {"num_experts_per_tok": 2}
_OWN_WIDTH = {"num_experts": 4, "moe_intermediate_size": 12, "norm_topk_prob": True}
EXPERTS: dict[str, Callable[[], nn.Module]] = {
    "mixtral": _family("MixtralForCausalLM", "MixtralConfig", **_GROUPED, **_MIXED, num_local_experts=4),
    "olmoe": _family("OlmoeForCausalLM", "OlmoeConfig", **_GROUPED, **_MIXED, num_experts=4),
    "qwen3-moe": _family("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_HEADS, **_MIXED, **_OWN_WIDTH),
    "gpt-oss": _family("GptOssForCausalLM", "GptOssConfig", **_HEADS, **_MIXED, num_local_experts=4),
}

opt = _family(
    "OPTForCausalLM", "OPTConfig", **_SIZES, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=WIDTH
)
mixtral = EXPERTS["mixtral"]


class Toy(nn.Module):
    """Embedding, running mean over earlier tokens, linear layer, norm, head; subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, V)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(self.hidden(self.embedded(input_ids))))

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embed(ids)

    def hidden(self, x: Tensor) -> Tensor:  # (B, T, WIDTH)
        earlier = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.norm(torch.tanh(self.mix(earlier)) + x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def toy(kind: type[Toy] = Toy) -> nn.Module:
    """A perturbed toy, in evaluation mode."""
    torch.manual_seed(0)
    return perturbed(kind())


def samples(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Random token ids of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, T) each, with padding on the right."""
    ids = torch.full((len(rows), width or max(map(len, rows))), 3)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
        mask[b, : len(row)] = 1
    return ids, mask


def explicit_matrix(sketcher: GradientSketcher) -> Float:
    """S, shape (R, D), parameters in the order of `named_parameters`: the sketches of an identity basis."""
    columns = []
    for name, parameter in sketcher.parameters.items():
        size = parameter.numel()
        for basis in torch.eye(size, dtype=torch.float64).split(512):  # 512² floats at a time are enough
            sketcher.projection.begin(len(basis))
            sketcher.projection.full(name, basis.reshape(-1, *parameter.shape))
            columns.append(sketcher.projection.finish().numpy().astype(np.float64))
    return np.concatenate(columns).T


def exact_gradients(model: nn.Module, rows: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> Float:
    """Gradients of each sample's mean loss, shape (B, D), by plain autograd, one sample at a time.

    Zero for a sample that predicts nothing. Parameters as in `explicit_matrix`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for b, ids in enumerate(rows):
        targets = (ids if labels is None else labels[b])[1:]
        predicted = targets != -100
        if not predicted.any():
            gradients.append(np.zeros(sum(p.numel() for p in parameters)))
            continue
        logits = model(input_ids=ids[None]).logits[0, :-1][predicted]
        loss = functional.cross_entropy(logits, targets[predicted])
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.stack(gradients)


def expected(sketcher: GradientSketcher, rows: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> Float:
    """Compute what the sketches must be, shape (B, R): S g, with g of the same weights in float64."""
    model = copy.deepcopy(sketcher.model).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product has no float64
    return exact_gradients(model, rows, labels) @ explicit_matrix(sketcher).T


def gap(values: Tensor | Float, reference: Tensor | Float) -> float:
    """The largest ‖z − z'‖ of a row in units of that row's ‖z'‖; rows that are zero in both agree."""
    z, other = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    assert z.shape == other.shape
    distance, length = np.linalg.norm(z - other, axis=1), np.linalg.norm(other, axis=1)
    relative = np.divide(distance, length, out=np.where(distance == 0, 0.0, np.inf), where=length > 0)
    return float(relative.max())  # NaN where anything is: no bound holds then
