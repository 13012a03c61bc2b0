"""Algorithms 1 and 2 of the paper (arXiv:2605.31175), written from their formulas: slow, float64, no code of ours.

Other tests compare the package with this file, so it takes no short cut: one sample at a time, the sketch an explicit
matrix, the spectrum a full eigendecomposition, the linear problem by projected gradient with Dykstra's projections.

N samples, M validation samples, K selected, R sketch size, D parameters, T tokens, V vocabulary, s stiff directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float64]


# --- Algorithm 1: per-sample gradients, their sketches, and the split into stiff and flat ---


def per_sample_gradients(model: torch.nn.Module, samples: Sequence[torch.Tensor]) -> Float:
    """g_i = ∇θ ℓ(x_i; θ), shape (N, D), ℓ the mean negative log-likelihood of the T − 1 tokens that follow another.

    Args:
        model: a causal LM in float64, in eval mode; `model(input_ids=(1, T)).logits` has shape (1, T, V).
        samples: N vectors of token ids, each of its own length T ≥ 2.

    D runs over the trainable parameters in the order of `named_parameters`, which names a tied parameter once.
    """
    parameters = [p for _, p in model.named_parameters() if p.requires_grad]
    assert all(p.dtype == torch.float64 for p in parameters), "the reference is float64: call model.double()"
    assert not model.training, "dropout would make the loss a random number: call model.eval()"
    gradients = []
    for ids in samples:
        logits = model(input_ids=ids[None]).logits[0]  # (T, V)
        log_likelihood = torch.log_softmax(logits[:-1], dim=-1)  # (T-1, V): position t predicts token t + 1
        loss = -log_likelihood[torch.arange(len(ids) - 1), ids[1:]].mean()
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.stack(gradients)


def explicit_gaussian(R: int, D: int, seed: int) -> Float:
    """S, shape (R, D), entries 𝒩(0, 1/R), so that E‖S g‖² = ‖g‖²."""
    return np.random.default_rng(seed).normal(0.0, 1.0 / np.sqrt(R), size=(R, D))


def sketch(S: Float, gradients: Float) -> Float:
    """z_i = S g_i for every row, shape (N, R)."""
    return np.stack([S @ g for g in gradients])


@dataclass(frozen=True)
class StiffAndFlat:
    """Output of Algorithm 1 for Algorithm 2, and the spectrum it came from."""

    eigenvalues: Float  # (R,), descending, zeros and rounding below zero included
    eigenvectors: Float  # (R, R), columns in the same order
    num_stiff: int  # s
    cost: Float  # a, (N,)
    flat: Float  # F z_i, (N, R)


def algorithm_1(validation: Float, pool: Float, energy: float = 0.945) -> StiffAndFlat:
    """Stiff costs and flat parts of the pool's sketches (N, R) by the curvature of the validation sketches (M, R)."""
    M, R = validation.shape
    fisher = np.zeros((R, R))
    for z in validation:
        fisher += np.outer(z, z) / M  # H̃ = (1/M) Σ z zᵀ
    eigenvalues, eigenvectors = np.linalg.eigh(fisher)
    eigenvalues, eigenvectors = eigenvalues[::-1], eigenvectors[:, ::-1]

    num_stiff = 1
    while eigenvalues[:num_stiff].sum() < energy * eigenvalues.sum():
        num_stiff += 1

    stiff = eigenvectors[:, :num_stiff]  # (R, s)
    F = np.eye(R) - stiff @ stiff.T
    cost = np.array([sum(eigenvalues[j] * (stiff[:, j] @ z) ** 2 for j in range(num_stiff)) for z in pool])
    flat = np.stack([F @ z for z in pool])
    return StiffAndFlat(eigenvalues, eigenvectors, num_stiff, cost, flat)


# --- Algorithm 2: successive convex approximation ---


@dataclass(frozen=True)
class Answer:
    """Output of Algorithm 2 from one start, with the check that the paper leaves out."""

    weights: Float  # (N,), of the relaxed problem
    selected: NDArray[np.intp]  # (K,), ascending: the K largest weights
    objective: float  # ‖Σ_selected F z_i‖²
    budget: float  # τ
    budget_used: float  # Σ_selected a_i
    breaks_budget: bool


def algorithm_2(
    flat: Float,
    cost: Float,
    K: int,
    *,
    budget: float | None = None,
    budget_ratio: float = 0.1,
    starts: Sequence[Float] | None = None,
    max_linearisations: int = 50,
) -> list[Answer]:
    """Maximise ‖Σ w_i F z_i‖² over 0 ≤ w ≤ 1, Σ w = K, Σ a w ≤ τ by solving linearisations, then keep the K largest.

    Args:
        flat: F z_i, shape (N, R).
        cost: a, shape (N,).
        K: how many are selected.
        budget: τ; where left out, τ = budget_ratio · mean(a) · K as in the paper.
        budget_ratio: used where `budget` is left out.
        starts: weights of shape (N,) to start from; the uniform K/N where left out.
        max_linearisations: for each start.

    Returns:
        One answer for each start. Neither feasibility of the budget nor that of the answer is enforced: the paper
        does not either. For a budget that no weights meet, the numbers mean nothing.
    """
    tau = budget_ratio * cost.mean() * K if budget is None else budget
    starts = [np.full(len(cost), K / len(cost))] if starts is None else starts
    return [_successive_approximation(flat, cost, K, tau, start, max_linearisations) for start in starts]


def _successive_approximation(flat: Float, cost: Float, K: int, tau: float, w: Float, max_steps: int) -> Answer:
    w = dykstra(w, cost, K, tau)
    value = np.sum((flat.T @ w) ** 2)
    for _ in range(max_steps):
        c = 2.0 * flat @ (flat.T @ w)  # (N,): the gradient at w, and so the linearisation
        w = linear_problem(c, cost, K, tau, w)
        last, value = value, np.sum((flat.T @ w) ** 2)
        if value <= last * (1 + 1e-9):
            break
    selected = np.sort(np.argsort(-w, kind="stable")[:K])
    used = float(cost[selected].sum())
    return Answer(
        weights=w,
        selected=selected,
        objective=float(np.sum(flat[selected].sum(axis=0) ** 2)),
        budget=float(tau),
        budget_used=used,
        breaks_budget=used > tau * (1 + 1e-12),  # a sum in another order differs by less
    )


def linear_problem(c: Float, cost: Float, K: int, tau: float, w: Float, max_steps: int = 50) -> Float:
    """argmax cᵀw over the polytope, by projected gradient from w. Each step is √K long, about the polytope's width."""
    if not np.any(c):
        return w
    step = np.sqrt(K) * c / np.linalg.norm(c)
    for _ in range(max_steps):
        last, w = w, dykstra(w + step, cost, K, tau)
        if np.max(np.abs(w - last)) < 1e-9:
            break
    return w


def dykstra(point: Float, cost: Float, K: int, tau: float, max_cycles: int = 2000) -> Float:
    """The nearest point of {0 ≤ w ≤ 1} ∩ {Σ w = K} ∩ {Σ a w ≤ τ}, by projecting on the three sets in turn."""

    def box(w: Float) -> Float:
        return np.clip(w, 0.0, 1.0)

    def hyperplane(w: Float) -> Float:
        return w - (w.sum() - K) / len(w)

    def half_space(w: Float) -> Float:
        excess = max(cost @ w - tau, 0.0)
        return w - excess * cost / (cost @ cost) if excess else w

    w = point
    corrections = [np.zeros_like(point) for _ in range(3)]
    for _ in range(max_cycles):
        moved = 0.0
        for k, project in enumerate((hyperplane, half_space, box)):
            aim = w + corrections[k]
            w = project(aim)
            moved = max(moved, float(np.max(np.abs(aim - w - corrections[k]))))
            corrections[k] = aim - w
        if moved < 1e-10:  # the corrections, not w, say that it has settled: w may rest for some cycles
            break
    return w
