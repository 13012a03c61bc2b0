"""Sketches of every family of models against S g, with S explicit and g from autograd in float64.

B samples, T tokens, R sketch size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from direct_anneal.gradients import GradientSketcher, ProjectionName, SlowPathWarning
from gradients.tiny_models import (
    EXPERTS,
    FAMILIES,
    expected,
    explicit_matrix,
    gap,
    gpt2,
    llama,
    mixtral,
    opt,
    padded,
    samples,
)

R = 48

# In units of ‖z‖. The models compute in float32, whose rounding (6e-8) grows over two layers, the loss and a sum over
# some thousand parameters to less than 1e-6; a wrong formula shows at 1e-2.
ROUNDING = 1e-5

# Factor sizes: every side of a matrix shrinks; only the longer ones do; none does.
PROJECTIONS: list[tuple[ProjectionName, int]] = [
    ("two-sided", 3),
    ("two-sided", 20),
    ("two-sided", 64),
    ("gaussian", 1),
]


CASES = [
    *((family, *projection) for family in ("llama-tied-biased", "gpt2") for projection in PROJECTIONS),
    *((family, *projection) for family in FAMILIES for projection in PROJECTIONS[1:2]),
]


@pytest.mark.parametrize(("family", "projection", "factor_size"), sorted(set(CASES)))
def test_fast_path_is_s_times_the_gradient(family: str, projection: ProjectionName, factor_size: int) -> None:
    sketcher = GradientSketcher(FAMILIES[family](), R, projection, seed=1, factor_size=factor_size)
    rows = samples(12, 7, 2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        values = sketcher.sketch(*padded(rows)).values
    assert sketcher.slow_parameters == ()
    assert gap(values, expected(sketcher, rows)) < ROUNDING


@pytest.mark.parametrize("factor_size", [4, 64])
@pytest.mark.parametrize("family", EXPERTS)
def test_experts_in_one_tensor_and_routers_are_fast_and_exact(family: str, factor_size: int) -> None:
    """Against float64 autograd of the plain model, and against autograd one sample at a time."""
    sketcher = GradientSketcher(EXPERTS[family](), R, factor_size=factor_size)
    rows = samples(12, 7, 2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        values = sketcher.sketch(*padded(rows)).values
    assert sketcher.slow_parameters == ()
    assert gap(values, expected(sketcher, rows)) < ROUNDING
    assert str(sketcher.describe()).startswith("100 % of parameters counted, all of them fast\n")

    alone = GradientSketcher(sketcher.model, R, factor_size=factor_size)
    alone._capture.layers = []
    with pytest.warns(SlowPathWarning):
        assert gap(values, alone.sketch(*padded(rows)).values) < ROUNDING


@pytest.mark.parametrize("build", [llama, mixtral])
@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_given_rows_are_s_itself(build: Callable[[], nn.Module]) -> None:
    model, rows = build(), samples(12, 7, 2, 9)
    directions = torch.randn(3, sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(0))
    sketcher = GradientSketcher(model, projection=directions)
    assert gap(sketcher.sketch(*padded(rows)).values, expected(sketcher, rows)) < ROUNDING
    assert explicit_matrix(sketcher) == pytest.approx(directions.numpy())


def test_experts_go_one_sample_at_a_time_under_a_dense_projection() -> None:
    sketcher = GradientSketcher(mixtral(), R, "gaussian")
    rows = samples(12, 7, 2, 9)
    with pytest.warns(SlowPathWarning, match=r"4 parameters .* model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        values = sketcher.sketch(*padded(rows)).values
    assert {name.split(".")[4] for name in sketcher.slow_parameters} == {"experts"}
    assert gap(values, expected(sketcher, rows)) < ROUNDING


@pytest.mark.filterwarnings("ignore::direct_anneal.gradients.SlowPathWarning")
def test_an_embedding_that_is_not_given_token_ids_is_exact_and_alone_in_being_slow() -> None:
    """OPT's positions are a subclass of Embedding that takes the attention mask first."""
    sketcher = GradientSketcher(opt(), R)
    rows = samples(12, 7, 2, 9)
    assert gap(sketcher.sketch(*padded(rows)).values, expected(sketcher, rows)) < ROUNDING
    assert set(sketcher.slow_parameters) <= {"model.decoder.embed_positions.weight"}


def test_slow_path_is_announced_once() -> None:
    sketcher = GradientSketcher(mixtral(), R, "gaussian")
    rows = samples(5, 3)
    with pytest.warns(SlowPathWarning):
        first = sketcher.sketch(*padded(rows)).values
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)
        assert torch.equal(sketcher.sketch(*padded(rows)).values, first)


def test_eager_attention_gives_the_same() -> None:
    rows = samples(12, 7, 2, 9)
    values = []
    for implementation in ("sdpa", "eager"):
        model = llama()
        model.set_attn_implementation(implementation)
        values.append(GradientSketcher(model, R).sketch(*padded(rows)).values)
    assert gap(values[0], values[1]) < ROUNDING


@pytest.mark.parametrize(
    ("family", "projection"), [("llama", "two-sided"), ("gpt2", "gaussian"), ("gemma", "two-sided")]
)
def test_float64_models_take_the_fast_path_too(family: str, projection: ProjectionName) -> None:
    sketcher = GradientSketcher(FAMILIES[family]().double(), R, projection)
    rows = samples(12, 7, 2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowPathWarning)  # whether it is slow comes last: exactness matters more
        values = sketcher.sketch(*padded(rows)).values
    assert values.dtype == torch.float32
    assert gap(values, expected(sketcher, rows)) < ROUNDING  # sketches are float32, whatever the model
    assert sketcher.slow_parameters == ()


def test_labels_say_what_is_predicted() -> None:
    rows = samples(9, 9, 6, 6)
    labels = [row.clone() for row in rows]
    labels[0][:5] = -100  # a prompt
    labels[1][:] = -100  # nothing to learn from
    labels[2][1::2] = -100
    labels[3] = labels[3].flip(0)  # not the tokens themselves
    ids, mask = padded(rows)
    targets, _ = padded(labels)  # padding carries a real token: only the mask says that it is none
    for build in (llama, gpt2):
        sketcher = GradientSketcher(build(), R)
        sketches = sketcher.sketch(ids, mask, targets)
        assert sketches.num_tokens.tolist() == [4, 0, 2, 5]  # row 2 keeps its targets 2 and 4, and loses 1, 3, 5
        assert gap(sketches.values, expected(sketcher, rows, labels)) < ROUNDING
        assert not sketches.values[1].any()
        assert sketches.losses[1] == 0
        assert sketches.norms[1] == 0


def test_the_first_label_is_never_predicted() -> None:
    ids = torch.stack(samples(6, 6))
    labels = ids.clone()
    labels[:, 0] = -100
    sketcher = GradientSketcher(llama(), R)
    assert torch.equal(sketcher.sketch(ids, labels=labels).values, sketcher.sketch(ids).values)


def test_samples_that_predict_nothing_are_zero() -> None:
    rows = samples(1, 6)
    ids = torch.zeros(3, 6, dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[0, :1], mask[0, :1] = rows[0], 1
    ids[2], mask[2] = rows[1], 1  # row 1 is padding alone
    sketcher = GradientSketcher(llama(), R)
    sketches = sketcher.sketch(ids, mask)
    assert sketches.num_tokens.tolist() == [0, 0, 5]
    for numbers in (sketches.values, sketches.losses, sketches.norms):
        assert not numbers[:2].any()
    assert gap(sketches.values[2:], expected(sketcher, [rows[1]])) < ROUNDING


@pytest.mark.parametrize("width", [1, 4])
def test_batches_that_predict_nothing_are_zero_and_leave_the_check_to_the_next(width: int) -> None:
    sketcher = GradientSketcher(llama(), R)
    nothing = sketcher.sketch(torch.ones(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long))
    assert not nothing.values.any()
    assert nothing.values.shape == (2, R)
    assert nothing.num_tokens.tolist() == [0, 0]
    assert nothing.losses.tolist() == nothing.norms.tolist() == [0, 0]
    rows = samples(6)
    assert gap(sketcher.sketch(rows[0][None]).values, expected(sketcher, rows)) < ROUNDING


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_are_those_of_transformers(family: str) -> None:
    model = FAMILIES[family]()
    rows = samples(12, 7, 2, 9)
    sketches = GradientSketcher(model, R).sketch(*padded(rows))
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss for row in rows]
    # Both are float32 means of the same numbers, from matrices of another shape.
    torch.testing.assert_close(sketches.losses, torch.stack(losses), rtol=1e-5, atol=0)
    assert sketches.num_tokens.tolist() == [11, 6, 1, 8]


def test_norms_are_of_the_sketches() -> None:
    sketches = GradientSketcher(llama(), R).sketch(*padded(samples(12, 7)))
    # One float32 sum of R squares, perhaps in another order.
    torch.testing.assert_close(sketches.norms, sketches.values.square().sum(1).sqrt(), rtol=1e-6, atol=0)
    for numbers in (sketches.values, sketches.losses, sketches.norms):
        assert numbers.dtype == torch.float32
        assert not numbers.requires_grad


@pytest.mark.parametrize("projection", ["two-sided", "gaussian"])
def test_one_seed_gives_the_same_bytes_and_another_gives_others(projection: ProjectionName) -> None:
    ids, mask = padded(samples(12, 7, 9))
    first, again, other = (
        GradientSketcher(llama(), R, projection, seed=seed).sketch(ids, mask).values for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    # Sketches of one gradient by independent matrices have a cosine of N(0, 1/R): 0.14 here, so |cosine| < 0.9.
    assert torch.cosine_similarity(first, other).abs().max() < 0.9


def test_sketching_twice_gives_the_same_bytes() -> None:
    sketcher = GradientSketcher(llama(), R)
    ids, mask = padded(samples(12, 7, 9))
    first = sketcher.sketch(ids, mask)
    sketcher.sketch(ids.flip(1))
    again = sketcher.sketch(ids, mask)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.losses, again.losses)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection": "sparse"}, r'must be "two-sided" or "gaussian", got \'sparse\''),
        ({"sketch_size": 0}, "at least 1, got 0 and 64"),
        ({"factor_size": 0}, "at least 1, got 2048 and 0"),
    ],
)
def test_bad_requests_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientSketcher(llama(), **settings)  # type: ignore[arg-type]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        GradientSketcher(llama().requires_grad_(False), R)


@pytest.mark.parametrize(
    ("ids", "mask", "labels", "message"),
    [
        ((2, 5), (2, 4), None, r"attention_mask has shape \(2, 4\), input_ids \(2, 5\)"),
        ((2, 5), None, (5, 2), r"labels has shape \(5, 2\), input_ids \(2, 5\)"),
        ((5,), None, None, r"shape \(B, T\) and hold tokens, got \(5,\)"),
        ((0, 5), None, None, r"shape \(B, T\) and hold tokens, got \(0, 5\)"),
        ((2, 0), None, None, r"shape \(B, T\) and hold tokens, got \(2, 0\)"),
    ],
)
def test_shapes_that_disagree_are_refused(
    ids: tuple[int, ...], mask: tuple[int, ...] | None, labels: tuple[int, ...] | None, message: str
) -> None:
    sketcher = GradientSketcher(llama(), R)
    with pytest.raises(ValueError, match=message):
        sketcher.sketch(
            *(None if shape is None else torch.ones(shape, dtype=torch.long) for shape in (ids, mask, labels))
        )
