"""How long work tells where it is: a bar on a terminal, plain lines elsewhere, nothing in a library."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

Advance = Callable[[int], object]

_PLAIN_SECONDS = 10.0


class Progress(Protocol):
    """Shows the stages of a run."""

    def stage(self, name: str, unit: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Show one stage while it lasts; call what is yielded with each amount of work done.

        Args:
            name: what is done, for people.
            unit: what is counted, plural.
            total: how many there are, where that is known.
        """

    def note(self, line: str) -> None:
        """Say something between stages."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        yield lambda _: None

    def note(self, line: str) -> None:
        pass


class PlainLines:
    """A line when a stage ends, and one every ten seconds on the way. For logs.

    Args:
        stream: where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None) -> Iterator[Advance]:
        started = last = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= _PLAIN_SECONDS:
                last = now
                rate = done / (now - started)
                left = f" of {total:,}, {(total - done) / max(rate, 1e-9):.0f} s left" if total else ""
                self._say(f"{name}: {done:,}{left} ({rate:,.0f} {unit}/s)")

        yield advance
        self._say(f"{name}: done, {done:,} {unit} in {time.monotonic() - started:.1f} s")

    def note(self, line: str) -> None:
        self._say(line)

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Bars:
    """A bar for each stage with its rate and the time left. For terminals."""

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} " + unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            started = time.monotonic()
            task = bars.add_task(name, total=total, rate="")
            done = 0

            def advance(amount: int) -> None:
                nonlocal done
                done += amount
                rate = done / max(time.monotonic() - started, 1e-9)
                bars.update(task, advance=amount, rate=f"{rate:,.0f} {unit}/s")

            yield advance

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def for_stream(stream: TextIO = sys.stderr) -> Progress:
    """Bars where people look at a terminal, plain lines in a log."""
    return Bars() if stream.isatty() else PlainLines(stream)
