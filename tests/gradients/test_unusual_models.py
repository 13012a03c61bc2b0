"""Models that do what hooks do not see: found on the first batch, said loudly, and exact all the same.

B samples, T tokens, R sketch size.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from direct_anneal.gradients import GradientSketcher, ProjectionName, SlowPathWarning
from gradients.tiny_models import WIDTH, Toy, V, expected, gap, padded, samples, toy

R = 48
ROUNDING = 1e-5  # of ‖z‖, float32 against float64; less than 1e-6 was seen
PROJECTIONS: list[ProjectionName] = ["two-sided", "gaussian"]


class RawScale(Toy):
    """A parameter outside every module with a fast path."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden * self.scale)


class Temperature(Toy):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * self.temperature


class Bypassed(Toy):
    """A linear layer's weight used without calling the layer."""

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.head.weight, self.head.bias)


class PartlyBypassed(Toy):
    """A linear layer that is called, and whose weight is used beside it."""

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden + functional.linear(hidden, self.mix.weight))


class TiedByHand(Toy):
    """The embedding's weight used as the head without calling a module."""

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embed.weight) + self.head(hidden)


class ByFrequency(Toy):
    """An embedding whose gradient is divided by how often a token occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH, scale_grad_by_freq=True)


class ScaledNorm(nn.LayerNorm):
    """Not affine in its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, (WIDTH,), self.weight.square(), self.bias)


class SquaredNorm(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ScaledNorm(WIDTH)


class GatedRMSNorm(nn.Module):
    """A norm that takes a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return functional.rms_norm(x, (WIDTH,), self.weight) * torch.sigmoid(gate)


class Gated(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.gated = GatedRMSNorm()

    def hidden(self, x: Tensor) -> Tensor:
        return self.gated(super().hidden(x), x)


class ResidualNorm(nn.Module):
    """A norm that returns its input beside its output, as fused ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.rms_norm(x, (WIDTH,), self.weight), x


class WithResidual(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.fused = ResidualNorm()

    def hidden(self, x: Tensor) -> Tensor:
        normed, residual = self.fused(super().hidden(x))
        return normed + residual


class TimeFirst(Toy):
    """A layer that sees tokens flattened with time before batch: on one sample nothing shows."""

    def logits(self, hidden: Tensor) -> Tensor:
        b, t, _ = hidden.shape
        flat = self.head(hidden.transpose(0, 1).reshape(t * b, -1))
        return flat.view(t, b, -1).transpose(0, 1)


class TimeMajor(Toy):
    """A layer that sees (T, B, ·)."""

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.transpose(0, 1)).transpose(0, 1)


class Routed(Toy):
    """Experts that see those tokens alone that were sent to them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def hidden(self, x: Tensor) -> Tensor:
        x = super().hidden(x)
        first = x[..., 0] > 0
        routed = torch.zeros_like(x)
        for expert, mine in zip(self.experts, (first, ~first), strict=True):
            routed[mine] = expert(x[mine])
        return x + routed


class UnusedLayer(Toy):
    """A layer that is never called, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.lonely = nn.Parameter(torch.ones(3))


class Twice(Toy):
    """Every layer used twice."""

    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(super().hidden(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) + super().logits(torch.tanh(hidden))

    def embedded(self, ids: Tensor) -> Tensor:
        return super().embedded(ids) + super().embedded(ids.flip(-1).flip(-1) // 2)


class Tied(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.embed.weight


class IgnoredRow(Toy):
    """An embedding with a row that is never updated."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH, padding_idx=0)


class TiedIgnoredRow(IgnoredRow):
    """The head updates the row that the embedding does not."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.embed.weight


class Positions(Toy):
    """Positions looked up once for the whole batch, without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(32, WIDTH)

    def embedded(self, ids: Tensor) -> Tensor:
        return super().embedded(ids) + self.positions(torch.arange(ids.shape[1]))


class InPlace(Toy):
    """Model that changes in place what a layer returned, as plain autograd allows."""

    def embedded(self, ids: Tensor) -> Tensor:
        x = super().embedded(ids)
        x *= 4.0
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        logits /= 2.0
        return logits


class ByKeyword(Toy):
    """Layers called with keywords."""

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(input=self.norm(input=hidden))

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embed(input=ids)


class NoEmbedding(Toy):
    """One-hot tokens into a linear layer: no embedding starts the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(V, WIDTH)

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embed(functional.one_hot(ids, V).to(self.embed.weight.dtype))


FAST = [Toy, Twice, Tied, IgnoredRow, TiedIgnoredRow, Positions, ByKeyword]
SLOW: list[tuple[type[Toy], set[str]]] = [
    (RawScale, {"scale"}),
    (InPlace, {"head.weight", "head.bias"}),
    (Temperature, {"temperature"}),
    (Bypassed, {"head.weight", "head.bias"}),
    (PartlyBypassed, {"mix.weight", "mix.bias"}),
    (TiedByHand, {"embed.weight"}),
    (ByFrequency, {"embed.weight"}),
    (SquaredNorm, {"norm.weight", "norm.bias"}),
    (Gated, {"gated.weight"}),
    (WithResidual, {"fused.weight"}),
    (TimeFirst, {"head.weight", "head.bias"}),
    (TimeMajor, {"head.weight", "head.bias"}),
    (Routed, {"experts.0.weight", "experts.0.bias", "experts.1.weight", "experts.1.bias"}),
    (UnusedLayer, {"lonely"}),
]


def rows() -> list[Tensor]:
    """Token 0 is in the first and the last: it is the ignored row of some toys. Tokens repeat."""
    first, *others = samples(12, 7, 2, 9, 11)
    first[2:6] = torch.tensor([0, 5, 5, 0])
    others[-1][-3:] = 0
    return [first, *others]


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("kind", FAST)
def test_unusual_but_fast(kind: type[Toy], projection: ProjectionName) -> None:
    sketcher = GradientSketcher(toy(kind), R, projection, factor_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        values = sketcher.sketch(*padded(rows())).values
    assert gap(values, expected(sketcher, rows())) < ROUNDING


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize(("kind", "slow"), SLOW)
def test_slow_but_exact(kind: type[Toy], slow: set[str], projection: ProjectionName) -> None:
    sketcher = GradientSketcher(toy(kind), R, projection, factor_size=8)
    with pytest.warns(SlowPathWarning, match=min(slow)):
        values = sketcher.sketch(*padded(rows())).values
    again = sketcher.sketch(*padded(rows()[::-1])).values.flip(0)
    reference = expected(sketcher, rows())
    assert gap(values, reference) < ROUNDING
    assert gap(again, reference) < ROUNDING
    assert set(sketcher.slow_parameters) >= slow


@pytest.mark.parametrize(
    "kind", [InPlace, RawScale, Temperature, Bypassed, PartlyBypassed, SquaredNorm, UnusedLayer, TimeMajor]
)
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_only_what_needs_it_is_slow(kind: type[Toy]) -> None:
    sketcher = GradientSketcher(toy(kind), R)
    sketcher.sketch(*padded(rows()))
    assert set(sketcher.slow_parameters) == dict(SLOW)[kind]


@pytest.mark.parametrize("kind", [NoEmbedding])
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_exact_where_nothing_starts_the_graph(kind: type[Toy]) -> None:
    sketcher = GradientSketcher(toy(kind), R)
    assert gap(sketcher.sketch(*padded(rows())).values, expected(sketcher, rows())) < ROUNDING


def test_the_warning_says_how_much_is_slow() -> None:
    model = toy(RawScale)
    share = WIDTH / sum(p.numel() for p in model.parameters())
    with pytest.warns(SlowPathWarning, match=rf"1 parameters \({share:.1%} of all entries\).*: scale$"):
        GradientSketcher(model, R).sketch(*padded(rows()))


def test_a_layout_that_shows_later_is_caught_then() -> None:
    """In the checked batch every token goes to one expert, so that nothing looks unusual."""
    model = toy(Routed)
    with torch.no_grad():
        model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0  # x[..., 0] is 1 for all tokens
    sketcher = GradientSketcher(model, R)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowPathWarning)
        sketcher.sketch(*padded(rows()[:2]))
        with torch.no_grad():
            model.norm.weight[0], model.norm.bias[0] = 1.0, 0.0  # and now its sign depends on the token
        values = sketcher.sketch(*padded(rows())).values
    assert gap(values, expected(sketcher, rows())) < ROUNDING


@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_the_check_looks_past_a_lost_sample() -> None:
    """The first sample's gradient is NaN; the second must not go unchecked for it."""
    model = toy(Bypassed)
    with torch.no_grad():
        model.embed.weight[7] = math.nan
    sketcher = GradientSketcher(model, R)
    sound = [torch.where(row == 7, 1, row) for row in rows()]
    values = sketcher.sketch(*padded([torch.full((9,), 7), *sound])).values
    assert gap(values[1:], expected(sketcher, sound)) < ROUNDING


class Groups(nn.Linear):
    """A linear layer over groups of its input: its weight's rows are not its output's places."""

    def forward(self, input: Tensor) -> Tensor:
        halves = input.reshape(*input.shape[:-1], 2, WIDTH // 2)
        return torch.einsum("...gi,goi->...go", halves, self.weight.reshape(2, WIDTH // 2, WIDTH // 2)).flatten(-2)


class Grouped(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Groups(WIDTH // 2, WIDTH, bias=False)


def test_a_grouped_layer_is_exact_one_sample_at_a_time() -> None:
    sketcher, rows = GradientSketcher(toy(Grouped), R), samples(9, 6)
    with pytest.warns(SlowPathWarning, match=r"mix\.weight"):
        sketches = sketcher.sketch(*padded(rows))
    assert gap(sketches.values, expected(sketcher, rows)) < ROUNDING
