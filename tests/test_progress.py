from __future__ import annotations

import io
import json

import pytest

from direct_anneal import progress
from direct_anneal.progress import Bars, JsonLines, PlainLines, Progress, Silent, duration, for_stream


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_the_end_of_a_short_stage(clock: list[float]) -> None:
    stream = io.StringIO()
    with PlainLines(stream).stage("Reading", "documents", 2000) as advance:
        for _ in range(2):
            clock[0] += 2
            advance(1000)
    assert stream.getvalue() == "Reading: done, 2,000 documents in 4.0 s\n"


def test_a_note_is_a_line_where_lines_go(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    for shown in (PlainLines(stream), Bars(), Silent()):
        shown.note("something")
    assert stream.getvalue() == "something\n"
    assert capsys.readouterr() == ("", "something\n")


def test_a_long_stage_tells_its_rate_and_what_is_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with PlainLines(stream).stage("Gradients", "tokens", 4000, ("documents", 40)) as advance:
        for _ in range(4):
            clock[0] += 6
            advance(1000)
    assert stream.getvalue().splitlines() == [
        "Gradients: 2,000 of 4,000 tokens, about 20 documents left, 12 s left (167 tokens/s)",
        "Gradients: 4,000 of 4,000 tokens, 0 s left (167 tokens/s)",
        "Gradients: done, 4,000 tokens in 24.0 s",
    ]


def test_what_was_there_before_says_nothing_of_the_pace(clock: list[float]) -> None:
    """A resumed run that has nine tenths behind it must not promise the rest at ten times its speed."""
    stream = io.StringIO()
    with PlainLines(stream).stage("Gradients", "tokens", 10_000) as advance:
        advance(9000)
        clock[0] += 20
        advance(500)
    assert "9,500 of 10,000 tokens, 20 s left (25 tokens/s)" in stream.getvalue()


@pytest.mark.parametrize(
    ("amount", "seconds", "told"),
    [(50, 20, "2.5 documents/s"), (1, 12, "12 s per document"), (1, 600, "10 min per document")],
)
def test_slow_rates_are_told_the_other_way_round(clock: list[float], amount: int, seconds: int, told: str) -> None:
    stream = io.StringIO()
    with PlainLines(stream).stage("Reading", "documents") as advance:
        clock[0] += seconds
        advance(amount)
    assert stream.getvalue().startswith(f"Reading: {amount} documents ({told})\n")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0 s"), (0.25, "0.2 s"), (12.4, "12 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2.0 h")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_objects_for_programs(clock: list[float]) -> None:
    stream = io.StringIO()
    with JsonLines(stream).stage("Gradients", "tokens", 4000, ("documents", 40)) as advance:
        for _ in range(2):
            clock[0] += 5
            advance(1000)
    on_the_way, end = map(json.loads, stream.getvalue().splitlines())
    assert on_the_way == {
        "event": "progress",
        "stage": "Gradients",
        "done": 2000,
        "total": 4000,
        "unit": "tokens",
        "seconds": 10.0,
        "seconds_left": 10.0,
        "documents_left": 20,
    }
    assert (end["event"], end["seconds_left"]) == ("done", 0.0)


@pytest.mark.parametrize("kind", [PlainLines, JsonLines])
def test_a_stage_that_fails_is_not_called_done(kind: type[PlainLines | JsonLines]) -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), kind(stream).stage("Reading", "documents"):
        raise KeyboardInterrupt
    assert "done" not in stream.getvalue()


@pytest.mark.parametrize("shown", [Silent(), Bars(), PlainLines(io.StringIO()), JsonLines(io.StringIO())])
@pytest.mark.parametrize("total", [None, 0, 5])
@pytest.mark.parametrize("items", [None, ("documents", 3)])
def test_every_kind_takes_the_same_calls(
    shown: Progress, total: int | None, items: tuple[str, int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown.stage("Reading", "documents", total, items) as advance:
        advance(0)
        advance(7)  # more than was foreseen
        advance(-7)  # a shard is begun again
    assert capsys.readouterr().out == ""  # the standard output is for results


def test_bars_for_people_lines_for_logs() -> None:
    assert isinstance(for_stream(_Terminal()), Bars)
    assert isinstance(for_stream(io.StringIO()), PlainLines)
