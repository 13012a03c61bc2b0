"""A sample's sketch is its own: neither padding nor the samples beside it change it.

B samples, T tokens, R sketch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from direct_anneal.errors import InputError
from direct_anneal.gradients import GradientSketcher
from gradients.tiny_models import FAMILIES, gap, gpt2, llama, padded, samples

R = 48

# In units of ‖z‖. Matrix products of another shape sum in another order, in float32: less than 1e-6 was seen.
ROUNDING = 1e-5

T = 12
LENGTHS = range(1, T + 1)


def one_by_one(sketcher: GradientSketcher, rows: list[Tensor]) -> Tensor:
    """Sketches (B, R) without any padding."""
    return torch.cat([sketcher.sketch(row[None]).values for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_from_one_to_t_in_one_batch(family: str) -> None:
    sketcher = GradientSketcher(FAMILIES[family](), R)
    rows = samples(*LENGTHS)
    together = sketcher.sketch(*padded(rows))
    assert gap(together.values, one_by_one(sketcher, rows)) < ROUNDING
    assert together.num_tokens.tolist() == [length - 1 for length in LENGTHS]


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("projection", ["two-sided", "gaussian"])
def test_padding_may_be_anywhere(build: Callable[[], nn.Module], projection: str) -> None:
    rows = samples(7, 9, 2)
    wide, filler = 14, 3
    ids, mask = torch.full((9, wide), filler), torch.zeros(9, wide, dtype=torch.long)
    for b, row in enumerate(rows):
        for layout, positions in enumerate(
            (
                torch.arange(len(row)),  # right
                torch.arange(wide - len(row), wide),  # left
                torch.arange(len(row)) + torch.arange(len(row)).ge(len(row) // 2) * 3 + 1,  # around and between
            )
        ):
            ids[3 * layout + b, positions], mask[3 * layout + b, positions] = row, 1
    sketcher = GradientSketcher(build(), R, projection)
    values = sketcher.sketch(ids, mask).values
    assert gap(values, one_by_one(sketcher, rows).repeat(3, 1)) < ROUNDING
    assert torch.equal(sketcher.sketch(ids, mask.bool()).values, values)


def test_what_padding_holds_does_not_matter() -> None:
    sketcher = GradientSketcher(llama(), R)
    ids, mask = padded(samples(12, 7, 2))
    other = torch.where(mask.bool(), ids, 49)
    first, second = sketcher.sketch(ids, mask, ids), sketcher.sketch(other, mask, other)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.losses, second.losses)


def test_columns_that_are_padding_for_all_are_cut() -> None:
    sketcher = GradientSketcher(gpt2(), R)
    rows = samples(5, 3)
    ids, mask = padded(rows, width=100)  # more positions than the model has
    assert torch.equal(sketcher.sketch(ids, mask).values, sketcher.sketch(*padded(rows)).values)


@settings(derandomize=True, deadline=None, database=None, max_examples=6)
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)))
def test_order_and_size_of_batches_do_not_matter(order: list[int], cuts: set[int]) -> None:
    rows = samples(12, 1, 7, 2, 9, 9, 3, 5)
    sketcher = GradientSketcher(llama(), R)
    reference = sketcher.sketch(*padded(rows)).values
    values = torch.empty_like(reference)
    edges = [0, *sorted(cuts), len(rows)]
    for first, last in itertools.pairwise(edges):
        batch = order[first:last]
        values[batch] = sketcher.sketch(*padded([rows[i] for i in batch])).values
    assert gap(values, reference) < ROUNDING


def test_the_batch_that_was_checked_first_does_not_matter() -> None:
    rows = samples(12, 7, 2, 9)
    forward, backward = GradientSketcher(llama(), R), GradientSketcher(llama(), R)
    backward.sketch(*padded(rows[::-1]))
    assert torch.equal(forward.sketch(*padded(rows)).values, backward.sketch(*padded(rows)).values)


def test_equal_samples_have_equal_sketches() -> None:
    [row] = samples(9)
    values = GradientSketcher(llama(), R).sketch(row.repeat(5, 1)).values
    assert gap(values, values[:1].expand(5, -1)) < ROUNDING


@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2"])
@pytest.mark.parametrize("wrong", [5000, -1])
def test_ids_outside_the_vocabulary_are_refused(family: str, wrong: int) -> None:
    model = FAMILIES[family]()
    sketcher, ids = GradientSketcher(model, R), torch.tensor([[3, 1, 2]])
    outside = torch.tensor([[3, wrong, 2]])
    for arguments in ({"input_ids": outside}, {"input_ids": ids, "labels": outside}):
        with pytest.raises(InputError, match=rf"must be in the model's vocabulary, 0\.\.\d+, got {wrong}: "):
            sketcher.sketch(**arguments)
    with pytest.raises(InputError, match="vocabulary"):
        sketcher.check(outside)
    mask = torch.tensor([[1, 0, 1]])  # what padding holds does not matter
    assert torch.isfinite(sketcher.sketch(outside, mask).values).all()
