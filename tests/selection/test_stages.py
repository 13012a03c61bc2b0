"""The time of a stage: what is done once, what grows, and what it would be with more work."""

from __future__ import annotations

import pytest

from direct_anneal.progress import Silent, Work
from direct_anneal.selection.stages import Stages, Timing


def timed(*steps: tuple[float, int], total: int | None = None) -> Timing:
    """One stage that has done so much more by these seconds; its last pair is its end."""
    now = 0.0
    stages = Stages(Silent(), lambda: now)
    with stages.stage("any", "tokens", total, work=Work(role="pool", unit="tokens")) as advance:
        for seconds, amount in steps:
            now = seconds
            advance(amount)
    return stages.timings["any"]


def test_a_model_that_is_loaded_once_is_not_scaled() -> None:
    found = timed((5.0, 0), (6.0, 100), (7.0, 100), (9.0, 200))  # a hundred a second after five seconds
    assert (found.seconds, found.start_up) == (9.0, pytest.approx(5.0))
    assert found.at(1) == 9.0
    assert found.at(10) == pytest.approx(5 + 40)


def test_where_all_came_at_once_everything_grows() -> None:
    assert timed((4.0, 10)).at(3) == 12.0


def test_a_stage_that_ended_early_counts_to_its_full_length() -> None:
    assert timed((1.0, 10), (2.0, 10), total=80).at(1) == pytest.approx(8.0)


def test_a_first_amount_that_was_quick_is_no_debt() -> None:
    assert timed((0.1, 100), (2.1, 100)).start_up == 0.0


def test_a_stage_that_fails_has_no_time() -> None:
    stages = Stages(Silent())
    with pytest.raises(ValueError, match="as it happens"), stages.stage("any", "tokens"):
        raise ValueError("as it happens")
    assert stages.timings == {}
