"""The oracle: curvature of tiny models in full, float64, from the definitions, one document at a time.

D parameters, M documents, V vocabulary. Nothing here is the package's, but for the sketcher that gives S.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradients.tiny_models import perturbed

Float = NDArray[np.float64]
Document = NDArray[np.int64]

V = 7
LOSSLESS = 512  # R: at least as many places as the tiny models have parameters


def tiny_llama() -> nn.Module:
    """D = 200, untied."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    return perturbed(LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=32, **sizes))).double()


def tiny_gpt2() -> nn.Module:
    """D = 312; the head is the embedding."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=4, n_layer=1, n_head=2, n_positions=8))
    return perturbed(model).double()


def documents(*lengths: int, seed: int = 0) -> list[Document]:
    """Random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, size=length) for length in lengths]


def _predictions(model: nn.Module, windows: Sequence[Document], flat: Tensor) -> Tensor:
    """Logits (P, V) of every predicted place of a document's windows, as a function of its parameters in one row."""
    parameters, start = {}, 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            parameters[name] = flat[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
    return torch.cat([functional_call(model, parameters, (torch.from_numpy(w)[None],)).logits[0, :-1] for w in windows])


def _cut(document: Document, max_length: int) -> list[Document]:
    return [document[i : i + max_length] for i in range(0, len(document), max_length)]


def _plain(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """A copy whose attention is written out, and its parameters in one row."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain, torch.cat([p.detach().flatten() for p in plain.parameters() if p.requires_grad])


def dense_hessian(model: nn.Module, texts: Sequence[Document], max_length: int = 99) -> Float:
    """∇² of (1/M) Σ_i (1/n_i) Σ_t nll, shape (D, D), by differentiating the gradient entry by entry."""
    plain, flat = _plain(model)
    flat.requires_grad_()
    loss = flat.new_zeros(())
    for text in texts:
        windows = _cut(text, max_length)
        targets = torch.from_numpy(np.concatenate([w[1:] for w in windows]))
        likelihood = torch.log_softmax(_predictions(plain, windows, flat), dim=1)
        loss = loss - likelihood[torch.arange(len(targets)), targets].mean() / len(texts)
    (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
    rows = [torch.autograd.grad(entry, flat, retain_graph=True)[0] for entry in gradient]
    return torch.stack(rows).numpy()


def dense_ggn(model: nn.Module, texts: Sequence[Document], max_length: int = 99) -> Float:
    """(1/M) Σ_i (1/n_i) Σ_t J_tᵀ (diag p − p pᵀ) J_t, shape (D, D), by explicit Jacobians."""
    plain, flat = _plain(model)
    total = np.zeros((len(flat), len(flat)))
    for text in texts:
        windows = _cut(text, max_length)
        scores = _predictions(plain, windows, flat).detach().numpy()
        jacobian = torch.autograd.functional.jacobian(lambda x, w=windows: _predictions(plain, w, x), flat).numpy()
        for J, score in zip(jacobian, scores, strict=True):  # (V, D), (V,)
            p = np.exp(score - score.max())
            p /= p.sum()
            total += J.T @ (np.diag(p) - np.outer(p, p)) @ J / (len(scores) * len(texts))
    return total


def exact_products(model: nn.Module, texts: Sequence[Document], vector: Float) -> dict[str, Float]:
    """Hessian and GGN times a vector of D entries, where matrices in full would be too large.

    J v by forward differentiation, which sees an embedding's padding row, too: v must be zero there.
    """
    plain, flat = _plain(model)
    flat.requires_grad_()
    v = torch.from_numpy(vector)
    hessian, ggn = torch.zeros_like(v), torch.zeros_like(v)
    for text in texts:
        scores = _predictions(plain, [text], flat)
        n, targets = len(scores), torch.from_numpy(text[1:])
        loss = -torch.log_softmax(scores, dim=1)[torch.arange(n), targets].mean() / len(texts)
        (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
        hessian += torch.autograd.grad(gradient @ v, flat, retain_graph=True)[0]
        with forward_ad.dual_level():
            moved = forward_ad.unpack_dual(_predictions(plain, [text], forward_ad.make_dual(flat, v))).tangent
        p = torch.softmax(scores.detach(), dim=1)
        curved = torch.stack([(torch.diag(q) - torch.outer(q, q)) @ x for q, x in zip(p, moved, strict=True)])
        ggn += torch.autograd.grad(scores, flat, curved)[0] / (n * len(texts))
    return {"hessian": hessian.numpy(), "ggn": ggn.numpy()}
