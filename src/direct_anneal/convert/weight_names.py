"""Under which names a checkpoint holds the weights of a Hugging Face model, and in which order their rows stand.

torchtitan's Llama turns neighbouring entries of a head, Hugging Face's the first half against the second: the rows of
q and k stand in another order there. Its Qwen3 turns as Hugging Face's does.

Source: the state-dict adapters of torchtitan 0.3; before that qkv_linear. was missing, and lm_head was called output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from direct_anneal.errors import InputError, option
from direct_anneal.model.weights import COMPUTED

# In front of the names, by what the checkpoint's state dict was: the model's own, or one of several parts.
_PREFIXES = ("", "model.", "module.", "app.model.")
_IN_LAYER = {
    "self_attn.q_proj": ("attention.qkv_linear.wq", "attention.wq"),
    "self_attn.k_proj": ("attention.qkv_linear.wk", "attention.wk"),
    "self_attn.v_proj": ("attention.qkv_linear.wv", "attention.wv"),
    "self_attn.o_proj": ("attention.wo",),
    "self_attn.q_norm": ("attention.q_norm",),
    "self_attn.k_norm": ("attention.k_norm",),
    "mlp.gate_proj": ("feed_forward.w1",),
    "mlp.up_proj": ("feed_forward.w3",),
    "mlp.down_proj": ("feed_forward.w2",),
    "input_layernorm": ("attention_norm",),
    "post_attention_layernorm": ("ffn_norm",),
}
_OUTSIDE = {"model.embed_tokens": ("tok_embeddings",), "model.norm": ("norm",), "lm_head": ("lm_head", "output")}
# model_type → whether torchtitan's rows of q and k stand in another order
TORCHTITAN = {"llama": True, "qwen3": False}

# Parts of a training's state that stand beside a model's weights where these have no prefix.
_TRAINING = frozenset(
    {"optimizer", "optimizers", "optim", "state", "param_groups", "lr_scheduler", "lr_schedulers", "scheduler"}
    | {"train_state", "trainer_state", "trainer", "dataloader", "data_loader", "dataset", "sampler", "rng", "rng_state"}
    | {"scaler", "grad_scaler", "step", "epoch", "metadata", "ft"}
)
# torchtitan's rotary tables, which it computes again, and what quantised layers note beside their weights.
_OWN_COMPUTED = re.compile(r"(^|\.)(freqs_cis|rope\.cache|_extra_state\d*)$")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The naming scheme of one checkpoint.

    Attributes:
        name: for people: "Hugging Face's" or "torchtitan's".
        prefix: what stands before every name.
        found: Hugging Face's name → the checkpoint's.
        reordered: (Hugging Face's name, tensor) → the tensor in Hugging Face's order; for weights, and for anything
            that has an entry for each of theirs.
        candidates: Hugging Face's name → those that the checkpoint may have for it, without the prefix.
    """

    name: str
    prefix: str
    found: Mapping[str, str]
    reordered: Callable[[str, Tensor], Tensor]
    candidates: Callable[[str], Iterable[str]]

    def names_of(self, weight: str) -> list[str]:
        """Return the names that the checkpoint may have for a weight."""
        return [self.prefix + theirs for theirs in self.candidates(weight)]

    def unplaced(self, there: Iterable[str], tied: Iterable[str], buffers: Iterable[str] = ()) -> list[str]:
        """Return the checkpoint's weights that have no place in the model, in its order.

        Where the model's names have a prefix, what is outside it is another part of the training's state.

        Args:
            there: names of the checkpoint's tensors.
            tied: Hugging Face's further names of weights that were found.
            buffers: regular expressions of names that are no weights, beside those of tables that are computed.
        """
        placed = {*self.found.values(), *(theirs for weight in tied for theirs in self.names_of(weight))}
        no_weights = [COMPUTED, _OWN_COMPUTED, *map(re.compile, buffers)]
        left = [name for name in there if name.startswith(self.prefix) and name not in placed]
        if not self.prefix:
            left = [name for name in left if name.partition(".")[0] not in _TRAINING]
        return [name for name in left if not any(pattern.search(name) for pattern in no_weights)]


def recognise(names: Iterable[str], wanted: Iterable[str], config: Any) -> Naming:
    """Find every wanted weight among the checkpoint's names.

    Raises:
        InputError: some have none; says which under the naming that comes nearest.
    """
    there, wanted = set(names), list(wanted)
    namings = list(_under(there, wanted, "Hugging Face's", _own, _as_it_is))
    if config.model_type in TORCHTITAN:
        order = _turned(config) if TORCHTITAN[config.model_type] else _as_it_is
        namings += _under(there, wanted, "torchtitan's", _torchtitan, order)
    best = max(namings, key=lambda naming: len(naming.found))
    if missing := [name for name in wanted if name not in best.found]:
        known = f"Hugging Face's, and torchtitan's for {' and '.join(TORCHTITAN)}"
        raise InputError(
            subject="the checkpoint",
            must=f"hold every weight of the {config.model_type} of {option('model_config')}",
            got=(
                f"but lacks {len(missing)} of {len(wanted)} under {best.name} names (first {missing[0]}; "
                f"it has {min(there)!r})"
            ),
            do=f"give its own config; known are the names of {known}",
        )
    return best


def _under(
    there: set[str],
    wanted: list[str],
    name: str,
    candidates: Callable[[str], Iterable[str]],
    reordered: Callable[[str, Tensor], Tensor],
) -> Iterator[Naming]:
    for prefix in _PREFIXES:
        pairs = ((weight, prefix + theirs) for weight in wanted for theirs in candidates(weight))
        found = {weight: theirs for weight, theirs in pairs if theirs in there}
        yield Naming(name=name, prefix=prefix, found=found, reordered=reordered, candidates=candidates)


def _own(name: str) -> Iterable[str]:
    yield name


def _torchtitan(name: str) -> Iterable[str]:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer is not None:
        return [f"layers.{layer[1]}.{theirs}.{kind}" for theirs in _IN_LAYER.get(layer[2], ())]
    return [f"{theirs}.{kind}" for theirs in _OUTSIDE.get(stem, ())]


def _as_it_is(name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001
    return tensor


def _turned(config: Any) -> Callable[[str, Tensor], Tensor]:
    """Return rows of q and k, (heads · 2 · half, ...): pairs that were neighbours come to lie half a head apart."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def reordered(name: str, tensor: Tensor) -> Tensor:
        count = heads.get(name.split(".")[-2])
        if count is None:
            return tensor
        pairs = tensor.reshape(count, -1, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    return reordered
