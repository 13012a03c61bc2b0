from __future__ import annotations

import itertools
import math

import pytest

from direct_anneal.train.schedules import SCHEDULES, ScheduleName, rate_factor

STEPS = 100
DECAYING: tuple[ScheduleName, ...] = ("linear", "1-sqrt", "cosine")


@pytest.mark.parametrize("schedule", DECAYING)
def test_falls_from_one_to_zero_without_rising(schedule: ScheduleName) -> None:
    factors = [rate_factor(schedule, step, STEPS) for step in range(STEPS + 1)]
    assert (factors[0], factors[-1]) == (1.0, pytest.approx(0.0, abs=1e-15))
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize(
    ("schedule", "half"), [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5), ("constant", 1.0)]
)
def test_at_half_time(schedule: ScheduleName, half: float) -> None:
    assert rate_factor(schedule, 50, STEPS) == pytest.approx(half)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_to_the_start_of_the_schedule(schedule: ScheduleName) -> None:
    factors = [rate_factor(schedule, step, STEPS, warm_up_steps=4) for step in range(STEPS)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors[5:]) <= 1.0
