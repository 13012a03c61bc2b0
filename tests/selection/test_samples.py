"""Selection for any module and loss, against explicit gradients and an explicit S in float64.

N pool, M validation samples, R sketch size, D parameters.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import direct_anneal
from direct_anneal.config.objective import DAMPING, TARGET_SCALE
from direct_anneal.errors import InputError
from direct_anneal.gradients import GradientSketcher
from gradients.tiny_models import explicit_matrix

R, N, M, K = 24, 30, 12, 7
Sample = tuple[Tensor, Tensor]


def drawn(count: int, seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(5, generator=generator), torch.randn(2, generator=generator)) for _ in range(count)]


POOL, VALIDATION = drawn(N, 1), drawn(M, 2)


def built() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1)


def sketched(model: nn.Module, data: list[Sample]) -> NDArray[np.float64]:
    """S g one by one, (B, R)."""
    precise, S = copy.deepcopy(model).double(), explicit_matrix(GradientSketcher(model, R))
    rows = []
    for x, y in data:
        loss = squared_error(precise, (x[None].double(), y[None].double())).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(precise.parameters()))]).numpy())
    return np.stack(rows) @ S.T


def chosen(pool: list[Sample] = POOL, **options: Any) -> direct_anneal.Selection:
    return direct_anneal.select(
        built(), pool, VALIDATION, squared_error, **{"num_selected": K, "sketch_size": R, **options}
    )


@pytest.mark.parametrize("objective", ["energy", "descent", "matching"])
def test_objectives_by_their_formulas(objective: Any) -> None:
    selection = chosen(objective=objective, budget_ratio=1.0)
    z, x = sketched(built(), VALIDATION), sketched(built(), POOL)
    values, vectors = np.linalg.eigh(z.T @ z / M)
    values, vectors = values[::-1], vectors[:, ::-1]
    s = int(np.argmax(np.cumsum(values) >= 0.945 * values.sum())) + 1
    if objective != "energy":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    cost = np.square(x @ vectors[:, :s]) @ values[:s]
    total = x[selection.indices].sum(axis=0)
    if objective == "energy":
        objective_value = np.sum((total - vectors[:, :s] @ (vectors[:, :s].T @ total)) ** 2)
    else:
        u = z / np.linalg.norm(z, axis=1, keepdims=True)
        H = (x.T @ x / N + u.T @ u / M) / 2
        newton = np.linalg.inv(H + DAMPING * np.linalg.eigvalsh(H)[-1] * np.eye(R))
        objective_value = total @ newton @ u.mean(axis=0)
        if objective == "matching":
            start, aim = x.mean(axis=0), u.mean(axis=0)
            between = (aim - start) @ newton @ (aim - start)
            chance = np.trace(newton @ np.cov(u.T)) / M + np.trace(newton @ np.cov(x.T, ddof=0)) / N
            target = K * (start + TARGET_SCALE * max(0.0, 1 - chance / between) * (aim - start))
            objective_value = sum(s * (u - target) @ newton @ (u - target) for s, u in ((1, K * start), (-1, total)))
    # Gradients are float32: 1e-5 of a row, twice that of a square, and sums cancel a little.
    assert len(set(selection.indices.tolist())) == K
    assert selection.budget == pytest.approx(cost.mean() * K, rel=1e-4)
    assert selection.budget_used == pytest.approx(cost[selection.indices].sum(), rel=1e-4)
    assert selection.objective == pytest.approx(objective_value, rel=1e-4)


@pytest.mark.parametrize("objective", ["energy", "descent", "matching"])
def test_batch_size_changes_nothing_but_rounding(objective: Any) -> None:
    one, all_at_once = (chosen(objective=objective, batch_size=size) for size in (1, N))
    assert set(one.indices.tolist()) == set(all_at_once.indices.tolist())
    np.testing.assert_allclose(one.scores, all_at_once.scores, rtol=1e-4, atol=1e-5)


def test_unusable_gradients_are_left_out_by_position() -> None:
    pool = list(POOL)
    pool[3] = (torch.full((5,), torch.nan), pool[3][1])
    pool[8] = (pool[8][0], torch.full((2,), 1e4))
    with pytest.warns(UserWarning, match=r"samples left out .*: 3 \(nan\), 8 \(outlier\)"):
        selection = chosen(pool)
    assert not {3, 8} & set(selection.indices.tolist())
    assert np.flatnonzero(np.isnan(selection.scores)).tolist() == [3, 8]
    others = [sample for place, sample in enumerate(pool) if place not in (3, 8)]
    places = np.delete(np.arange(N), [3, 8])
    assert set(places[chosen(others).indices].tolist()) == set(selection.indices.tolist())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool": []}, "samples must hold at least one sample"),
        ({"pool": iter(())}, "^samples must have a length and positions, as a list has, got tuple_iterator$"),
        ({"num_selected": N + 1}, r"num_selected must be in 1\.\.30"),
        ({"num_selected": 0}, r"num_selected must be in 1\.\.30"),
        ({"fraction": 0.5}, "given once"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        (
            {"objective": "energy", "filter": "newton"},
            "^filter must be flat or none .* pass objective matching or descent",
        ),
        ({"budget_ratio": 0.0}, "^budget_ratio must be a number above 0"),
        ({"budget_ratio": 1e-6}, "budget_ratio must allow the size asked for"),
    ],
)
def test_bad_input_is_told_in_a_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as refusal:
        chosen(**options)
    assert "\n" not in str(refusal.value)


def test_a_call_on_documents_names_parameters_too() -> None:
    with pytest.raises(InputError, match=r"^fraction must be in \(0, 1\], got 2"):
        direct_anneal.select(model="m", pool="p", validation="v", out="o", fraction=2.0)


def test_a_loss_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match="one loss for each of"):
        direct_anneal.select(built(), POOL, VALIDATION, lambda m, b: squared_error(m, b).mean(), num_selected=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attached", [True, False])
def test_losses_that_are_no_numbers_are_told_as_such(value: float, attached: bool) -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        losses = squared_error(model, batch) * value
        return losses if attached else losses.detach()

    with pytest.raises(InputError, match="losses of the validation must be finite, but all 12 are NaN or infinite"):
        direct_anneal.select_samples(built(), POOL, VALIDATION, broken, num_selected=3)


def test_losses_without_a_gradient_are_told_as_such() -> None:
    with pytest.raises(ValueError, match="do not detach"):
        direct_anneal.select_samples(
            built(), POOL, VALIDATION, lambda m, b: squared_error(m, b).detach(), num_selected=3
        )


def test_the_call_as_it_is_written_and_the_model_comes_back() -> None:
    model = built().train()
    model[0].bias.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    selection = direct_anneal.select(model, POOL, VALIDATION, squared_error, num_selected=3)
    assert len(selection.indices) == 3
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
