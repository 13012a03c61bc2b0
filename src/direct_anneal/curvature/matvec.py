"""Products of the validation loss's curvature with vectors, without ever forming a D × D matrix.

D parameters, T tokens, V vocabulary, P predicted places of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from direct_anneal.curvature.functional import logits

Matrix = Literal["ggn", "hessian"]
Tensors = dict[str, Tensor]


def product(
    matrix: Matrix,
    model: nn.Module,
    parameters: Tensors,
    vector: Tensors,
    ids: Tensor,
    labels: Tensor,
    weights: Tensor,
) -> list[Tensor]:
    """Return the curvature of Σ weight · nll over a batch, times a vector.

        hessian:  ∇² Σ_t w_t ℓ_t, by differentiating ⟨∇, v⟩ (Pearlmutter, 1994)
        ggn:      Σ_t w_t J_tᵀ (diag p_t − p_t p_tᵀ) J_t (Schraudolph, 2002), with J v by differentiating ⟨Jᵀ u, v⟩

    Both differentiate backward twice. Forward differentiation would be cheaper, but sees what backward leaves out
    (the padding row of an embedding), so that J v and Jᵀ u would not belong to one J.

    Args:
        parameters: leaves that require gradients, in the place of the model's own.
        vector: v, a tensor for each of them.
        ids, labels: (B, T); the label in the place of a token is what is predicted there.
        weights: (B, T), what a token's nll counts; 0 where it is not predicted, as in the first place.

    Returns:
        A tensor for each parameter, in their order.

    Cost: about four gradients each.
    """
    predicted = weights[:, 1:] != 0
    counted = weights[:, 1:][predicted]  # (P,)
    scores = logits(model, ids, parameters)[:, :-1][predicted]  # (P, V)
    if matrix == "hessian":
        nll = nn.functional.cross_entropy(scores, labels[:, 1:][predicted], reduction="none")
        gradient = _gradients((nll * counted).sum(), parameters, create_graph=True)
        return _gradients(_inner(gradient, vector), parameters)
    u = torch.zeros_like(scores, requires_grad=True)
    pulled = _gradients((scores * u).sum(), parameters, create_graph=True)  # Jᵀ u, linear in u
    (moved,) = torch.autograd.grad(_inner(pulled, vector), u, retain_graph=True)  # J v
    p = torch.softmax(scores.detach(), dim=1)
    curved = p * moved - p * (p * moved).sum(1, keepdim=True)
    return _gradients((scores * curved * counted[:, None]).sum(), parameters)


def _inner(pieces: list[Tensor], vector: Tensors) -> Tensor:
    return torch.stack([(piece * v).sum() for piece, v in zip(pieces, vector.values(), strict=True)]).sum()


def _gradients(value: Tensor, parameters: Mapping[str, Tensor], *, create_graph: bool = False) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            value, list(parameters.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    )
