"""Any module under any per-sample loss; which parameters, which reduction, and what is said of them.

B samples, R sketch size, D parameters.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from direct_anneal.gradients import GradientSketcher, ProjectionName, SlowPathWarning, batches
from direct_anneal.gradients.batches import IGNORED_LABEL, _cross_entropy
from gradients.tiny_models import (
    FAMILIES,
    Float,
    exact_gradients,
    expected,
    explicit_matrix,
    gap,
    llama,
    mixtral,
    padded,
    samples,
)

R = 48
ROUNDING = 1e-5  # of ‖z‖, float32 against float64


class Perceptron(nn.Sequential):
    """On vectors: linear layers and a norm, all with fast paths."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3))


class OnSequences(Perceptron):
    """The same on each vector of a sequence, and their mean."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).mean(1)


class Convolutional(nn.Sequential):
    """A layer without a fast path below one that has it."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def regression(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return functional.mse_loss(model(inputs), targets, reduction="none").sum(1)


def drawn(*shape: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(shape, generator=generator), torch.randn(3, generator=generator)) for _ in range(5)]


def one_at_a_time(sketcher: GradientSketcher, data: list[tuple[Tensor, Tensor]]) -> Float:
    """S g by plain autograd in float64, (B, R)."""
    model = sketcher.model.double()
    rows = []
    for inputs, targets in data:
        loss = regression(model, (inputs[None].double(), targets[None].double())).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]).numpy())
    return np.stack(rows) @ explicit_matrix(sketcher).T


@pytest.mark.parametrize("projection", ["two-sided", "gaussian"])
@pytest.mark.parametrize(("kind", "shape"), [(Perceptron, (6,)), (OnSequences, (4, 6)), (Convolutional, (2, 6))])
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_any_module_and_loss(kind: type[nn.Module], shape: tuple[int, ...], projection: ProjectionName) -> None:
    torch.manual_seed(0)
    sketcher = GradientSketcher(kind(), R, projection, factor_size=4)
    data = drawn(*shape)
    sketches = sketcher.sketch_samples(data, regression)
    losses = torch.cat([regression(sketcher.model, (x[None], y[None])) for x, y in data])
    torch.testing.assert_close(sketches.losses, losses.detach(), rtol=1e-5, atol=0)  # float32 sums of three squares
    assert sketches.num_tokens.tolist() == [1] * 5
    assert set(sketcher.slow_parameters) == ({"0.weight", "0.bias"} if kind is Convolutional else set())
    assert gap(sketches.values, one_at_a_time(sketcher, data)) < ROUNDING


def test_a_loss_that_is_not_one_per_sample_is_refused() -> None:
    sketcher = GradientSketcher(Perceptron(), R)
    with pytest.raises(ValueError, match=r"one loss for each of \d samples, got shape \(\)"):
        sketcher.sketch_samples(drawn(6)[:2], lambda model, batch: regression(model, batch).mean())
    with pytest.raises(ValueError, match="at least one sample"):
        sketcher.sketch_samples([], regression)


def test_own_collate_serves_samples_of_any_kind() -> None:
    torch.manual_seed(0)
    sketcher = GradientSketcher(Perceptron(), R)
    data = drawn(6)
    plain = sketcher.sketch_samples(data, regression).values
    records = [{"x": x.tolist(), "y": y.tolist()} for x, y in data]

    def collate(batch: list[dict[str, list[float]]]) -> tuple[Tensor, Tensor]:
        return torch.tensor([one["x"] for one in batch]), torch.tensor([one["y"] for one in batch])

    assert torch.equal(sketcher.sketch_samples(records, regression, collate).values, plain)


def test_sum_is_mean_times_tokens() -> None:
    model, rows = llama(), samples(12, 7, 2)
    mean = GradientSketcher(model, R).sketch(*padded(rows))
    summed = GradientSketcher(model, R, reduction="sum").sketch(*padded(rows))
    torch.testing.assert_close(summed.values, mean.values * mean.num_tokens[:, None], rtol=1e-6, atol=0)  # one product
    assert torch.equal(summed.losses, mean.losses)  # still nats per token
    with pytest.raises(ValueError, match=r'"mean" or "sum", got \'median\''):
        GradientSketcher(model, R, reduction="median")  # type: ignore[arg-type]


def test_patterns_choose_parameters() -> None:
    model, rows = llama(), samples(12, 7)
    sketcher = GradientSketcher(model, R, parameters=["*.mlp.*", "lm_head.weight"], factor_size=6)
    assert all(".mlp." in name or name == "lm_head.weight" for name in sketcher.parameters)
    assert len(sketcher.parameters) == 7
    values = sketcher.sketch(*padded(rows)).values
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in sketcher.parameters)
    assert gap(values, expected(sketcher, rows)) < ROUNDING
    with pytest.raises(ValueError, match=r"'\*\.moe\.\*' matches none; there are, for example, model\.embed_tokens"):
        GradientSketcher(llama(), R, parameters=["*.mlp.*", "*.moe.*"])
    with pytest.raises(ValueError, match="at least one pattern"):
        GradientSketcher(llama(), R, parameters=[])


def test_description_says_which_way_everything_goes() -> None:
    model = mixtral()
    parameters = ["model.layers.*", "lm_head.weight", "model.norm.weight"]
    sketcher = GradientSketcher(model, R, "gaussian", parameters=parameters)
    assert all(way.squared_norm is None for way in sketcher.describe().ways)
    row = samples(9)
    with pytest.warns(SlowPathWarning):
        sketcher.sketch(row[0][None].expand(2, -1))  # one sample twice: what is said is of that gradient
    ways = {way.name: way for way in sketcher.describe().ways}
    assert set(ways) == {"linear", "elementwise", "one sample at a time", "excluded"}
    assert ways["excluded"].parameters == ("model.embed_tokens.weight",)
    assert sketcher.describe().ways[-1].name == "excluded"
    assert set(ways["one sample at a time"].parameters) == set(sketcher.slow_parameters)
    assert sketcher.describe().entries == sum(p.numel() for p in model.parameters())
    gradient = exact_gradients(model, row)[0]
    ends = np.cumsum([p.numel() for p in model.parameters()])[:-1]
    squares = dict(zip(dict(model.named_parameters()), map(np.sum, np.split(gradient**2, ends)), strict=True))
    for way in ways.values():
        share = sum(squares[name] for name in way.parameters) / sum(squares.values())
        assert way.squared_norm == pytest.approx(share, rel=1e-4)  # float32 gradients
    text = str(sketcher.describe())
    assert "model.embed_tokens.weight" in text
    assert f"{ways['excluded'].squared_norm:.1%}" in text


def test_tied_weights_are_described_by_both_uses() -> None:
    sketcher = GradientSketcher(FAMILIES["llama-tied-biased"](), R)
    assert {way.name for way in sketcher.describe().ways} == {"embedding + linear", "linear", "elementwise"}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_and_slopes_are_autograds(dtype: torch.dtype, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches._CHUNK_BYTES, "cpu", 4 * 11 * 4)  # four rows at a time: 15 rows end in a part of one
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 5, 11, generator=generator)).to(dtype)
    logits[0, 0] = torch.tensor([200.0] + [-200.0] * 10)  # likelihoods that underflow
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, 0], targets[1, 2:], targets[2, 0] = 3, IGNORED_LABEL, IGNORED_LABEL
    precise = logits.double().clone().requires_grad_()
    nats, slopes = _cross_entropy(logits, targets, in_place=in_place)
    assert (slopes.data_ptr() == logits.data_ptr()) == in_place
    reference = functional.cross_entropy(precise.flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    reference.sum().backward()
    # float32 logarithms (float64 where the model is); slopes are rounded to the logits' own precision at the end.
    torch.testing.assert_close(nats.double(), reference.detach(), rtol=1e-5, atol=1e-6)
    eps = max(torch.finfo(dtype).eps, 1e-6)
    assert precise.grad is not None
    torch.testing.assert_close(slopes.double(), precise.grad, rtol=eps, atol=eps)
    assert slopes.dtype == dtype


def test_only_what_no_backward_pass_reads_is_written_over() -> None:
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    plain = functional.linear(hidden, torch.randn(5, 4))
    assert batches._is_product(plain)
    for other in (plain.tanh(), plain[..., :4], plain.detach(), plain.transpose(1, 2), plain * 2):
        assert not batches._is_product(other)
