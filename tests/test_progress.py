from __future__ import annotations

import io

import pytest

from direct_anneal import progress
from direct_anneal.progress import Bars, PlainLines, Progress, Silent, for_stream


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
    with PlainLines(stream).stage("Reading", "documents", 4000) as advance:
        for _ in range(4):
            clock[0] += 6
            advance(1000)
    assert stream.getvalue().splitlines() == [
        "Reading: 2,000 of 4,000, 12 s left (167 documents/s)",
        "Reading: 4,000 of 4,000, 0 s left (167 documents/s)",
        "Reading: done, 4,000 documents in 24.0 s",
    ]


def test_without_a_total_nothing_is_said_to_be_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with PlainLines(stream).stage("Reading", "documents") as advance:
        clock[0] += 20
        advance(50)
    assert stream.getvalue().startswith("Reading: 50 (2 documents/s)\n")


def test_a_stage_that_fails_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), PlainLines(stream).stage("Reading", "documents"):
        raise KeyboardInterrupt
    assert "done" not in stream.getvalue()


@pytest.mark.parametrize("shown", [Silent(), Bars(), PlainLines(io.StringIO())])
@pytest.mark.parametrize("total", [None, 0, 5])
def test_every_kind_takes_the_same_calls(
    shown: Progress, total: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown.stage("Reading", "documents", total) as advance:
        advance(0)
        advance(7)  # more than was foreseen
    assert capsys.readouterr().out == ""  # the standard output is for results


def test_bars_for_people_lines_for_logs() -> None:
    assert isinstance(for_stream(_Terminal()), Bars)
    assert isinstance(for_stream(io.StringIO()), PlainLines)
