"""The reference that other tests trust, against things that are simpler still."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from reference import algorithm_1, algorithm_2, dykstra, explicit_gaussian, linear_problem, per_sample_gradients, sketch


class TiedBigram(torch.nn.Module):
    """Logits = E tanh(E[x] + b) with one E for both sides, a frozen scale, and a parameter that nothing uses."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.bias = torch.nn.Parameter(torch.zeros(width))
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.scale = torch.nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scale * self.head(torch.tanh(self.embedding(input_ids) + self.bias)))


@pytest.fixture
def model() -> TiedBigram:
    torch.manual_seed(0)
    return TiedBigram(vocabulary=5, width=3).double().eval()


def mean_loss(model: TiedBigram, ids: torch.Tensor) -> float:
    logits = model(input_ids=ids[None]).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))


def test_gradients_are_finite_differences_with_tied_parameters_once(model: TiedBigram) -> None:
    samples = [torch.tensor([0, 3, 1, 4]), torch.tensor([2, 2])]
    gradients = per_sample_gradients(model, samples)
    assert gradients.shape == (2, 5 * 3 + 3 + 2)
    step = 1e-6
    for ids, gradient in zip(samples, gradients, strict=True):
        differences = []
        with torch.no_grad():
            for parameter in (model.bias, model.unused, model.embedding.weight):  # a module's own come first
                for entry in range(parameter.numel()):
                    parameter.view(-1)[entry] += step
                    above = mean_loss(model, ids)
                    parameter.view(-1)[entry] -= 2 * step
                    below = mean_loss(model, ids)
                    parameter.view(-1)[entry] += step
                    differences.append((above - below) / (2 * step))
        # Central differences err by step² (1e-12) and by the rounding of the loss over the step (1e-16 / 1e-6).
        np.testing.assert_allclose(gradient, differences, atol=1e-8)


def test_gaussian_keeps_norms_on_average() -> None:
    S = explicit_gaussian(R=2000, D=50, seed=1)
    gradients = np.random.default_rng(2).normal(size=(4, 50))
    ratio = np.sum(sketch(S, gradients) ** 2, axis=1) / np.sum(gradients**2, axis=1)
    # ‖S g‖²/‖g‖² is χ²_R / R, of standard deviation √(2/R) = 0.032: five of them.
    np.testing.assert_allclose(ratio, 1.0, atol=0.16)


def test_algorithm_1_by_hand() -> None:
    # H̃ = diag(4, 1, 0.25)/1 · … : three samples along three axes, λ = 12/3, 3/3, 0.75/3; shares 0.762, 0.952, 1.
    validation = np.diag(np.sqrt([12.0, 3.0, 0.75]))
    split = algorithm_1(validation, pool=np.array([[1.0, 2.0, 3.0]]))
    assert split.num_stiff == 2
    np.testing.assert_allclose(split.eigenvalues, [4.0, 1.0, 0.25], rtol=1e-15)
    np.testing.assert_allclose(split.cost, [4.0 * 1 + 1.0 * 4], rtol=1e-15)
    np.testing.assert_allclose(split.flat, [[0.0, 0.0, 3.0]], atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_dykstra_finds_the_nearest_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, point, K = rng.random(6), rng.normal(size=6), 3
    tau = 0.5 * (np.sort(cost)[:K].sum() + cost.mean() * K)
    nearest = minimize(
        lambda w: np.sum((w - point) ** 2),
        np.full(6, 0.5),
        jac=lambda w: 2 * (w - point),
        bounds=[(0, 1)] * 6,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - K}, {"type": "ineq", "fun": lambda w: tau - cost @ w}],
        options={"ftol": 1e-14},
    )
    # A quadratic known to 1e-14 has its minimum known to the square root of that.
    np.testing.assert_allclose(dykstra(point, cost, K, tau), nearest.x, atol=2e-7)


@pytest.mark.parametrize("seed", range(5))
def test_projected_gradient_solves_the_linear_problem(seed: int) -> None:
    rng = np.random.default_rng(seed)
    N, K = 8, 3
    cost, c = rng.random(N), rng.normal(size=N)
    tau = 0.5 * (np.sort(cost)[:K].sum() + cost.mean() * K)
    best = linprog(-c, A_ub=[cost], b_ub=[tau], A_eq=[np.ones(N)], b_eq=[K], bounds=(0, 1))
    w = linear_problem(c, cost, K, tau, np.full(N, K / N))
    # Dykstra stops when nothing moves by more than 1e-10 a cycle; its convergence is linear, so 1e-6 is left at most.
    assert c @ w == pytest.approx(-best.fun, abs=1e-6)


def test_algorithm_2_shows_where_rounding_breaks_the_budget() -> None:
    # 1.6 of the two dear samples and 0.4 of the free one is best; the two largest weights are the dear ones, cost 2.
    flat, cost = np.array([[1.0], [1.0], [0.9]]), np.array([1.0, 1.0, 0.0])
    (answer,) = algorithm_2(flat, cost, K=2, budget=1.6)
    assert cost @ answer.weights == pytest.approx(1.6, abs=1e-6)  # Dykstra's stop, as above
    assert answer.selected.tolist() == [0, 1]
    assert (answer.objective, answer.budget_used, answer.breaks_budget) == (4.0, 2.0, True)


def test_algorithm_2_takes_its_budget_relative_to_the_pool() -> None:
    flat, cost = np.random.default_rng(3).normal(size=(5, 2)), np.array([0.0, 0.0, 0.0, 2.0, 3.0])
    starts = [np.full(5, 0.4), np.array([1.0, 1.0, 0.0, 0.0, 0.0])]
    answers = algorithm_2(flat, cost, K=2, budget_ratio=0.5, starts=starts)
    assert [answer.budget for answer in answers] == [0.5 * 1.0 * 2] * 2
    assert all(len(answer.selected) == 2 for answer in answers)
