"""Progress of long work: a bar on a terminal, lines elsewhere, nothing in a library."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TextIO

from direct_anneal.io.redaction import redacted
from direct_anneal.io.sanitize import sanitized, sanitized_json

Advance = Callable[[int], object]
Items = tuple[str, int]

_TELLING_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """The size that the time of a stage grows with: that of a corpus. For estimates from a sample of it.

    Attributes:
        role: of the corpus.
        unit: in which it counts.
        forward, gradients, training: passes of the model over its tokens: forward alone, with activations' gradients,
            and with the weights', too.
        disk: bytes that the stage takes while it lasts, beside what it leaves.
    """

    role: str
    unit: Literal["documents", "tokens"]
    forward: float = 0.0
    gradients: float = 0.0
    training: float = 0.0
    disk: int = 0


class Progress(Protocol):
    """Display of a run's stages."""

    def stage(
        self, name: str, unit: str, total: int | None = None, items: Items | None = None, work: Work | None = None
    ) -> AbstractContextManager[Advance]:
        """Show one stage while it lasts; call what is yielded with each amount of work done.

        The first amount may be what was done before: it counts, but says nothing of the pace.

        Args:
            name: what is done, for people.
            unit: what is counted, plural.
            total: how many there are, where that is known.
            items: what else there is of it, and how many ("documents", 2400): told is about how many are left.
            work: what its time grows with; none where it is the same for any corpus. Not shown.
        """

    def note(self, line: str) -> None:
        """Say something between stages."""


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Show the stages of whatever runs inside. Without it a library call is silent.

    >>> with showing(Silent()):
    ...     pass
    """
    before = _CURRENT.set(progress)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def current_progress() -> Progress:
    """Return the current progress display."""
    return _CURRENT.get() or Silent()


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


class Pace:
    """The progress of a stage: amount done, rate and time left.

    Args:
        unit, total, items: as for `Progress.stage`.
    """

    def __init__(self, unit: str, total: int | None, items: Items | None) -> None:
        self.unit, self.total, self._items = unit, total, items
        self.done = 0
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first amount came, and how much it was

    def add(self, amount: int) -> None:
        """Count what was done."""
        self.done += amount
        if self._first is None and amount:
            self._first = time.monotonic(), self.done

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """Units a second since the first amount, which may have been there before or have waited for a model to load.

        None before anything was done.
        """
        if self._first is None:
            return None
        since, before = self._first
        if self.done > before and time.monotonic() > since:
            return (self.done - before) / (time.monotonic() - since)
        return self.done / self.seconds if self.seconds > 0 and self.done > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """At this pace; None where total or pace is not known."""
        if self.total is None or self.rate is None:
            return None
        return max(self.total - self.done, 0) / self.rate

    @property
    def items_left(self) -> Items | None:
        """About how many, by the share of the work that is left."""
        if self._items is None or not self.total:
            return None
        name, count = self._items
        return name, round(count * max(self.total - self.done, 0) / self.total)

    def described(self) -> str:
        """Return 3,500 tokens/s, or 12 s per run where that says more."""
        if self.rate is None:
            return ""
        if self.rate >= 1:
            return f"{self.rate:,.0f} {self.unit}/s" if self.rate >= 10 else f"{self.rate:.1f} {self.unit}/s"
        return f"{duration(1 / self.rate)} per {self.unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """Spell a time in two digits or so: 8.4 s, 12 s, 34 min, 5.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Silent:
    """Display of nothing."""

    @contextmanager
    def stage(
        self,
        name: str,  # noqa: ARG002
        unit: str,  # noqa: ARG002
        total: int | None = None,  # noqa: ARG002
        items: Items | None = None,  # noqa: ARG002
        work: Work | None = None,  # noqa: ARG002
    ) -> Iterator[Advance]:
        yield lambda _: None

    def note(self, line: str) -> None:
        pass


class _Lines(ABC):
    """A line when a stage ends, and one every ten seconds on the way.

    Args:
        stream: where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(
        self,
        name: str,
        unit: str,
        total: int | None = None,
        items: Items | None = None,
        work: Work | None = None,  # noqa: ARG002
    ) -> Iterator[Advance]:
        pace = Pace(unit, total, items)
        last = 0.0

        def advance(amount: int) -> None:
            nonlocal last
            pace.add(amount)
            if pace.seconds - last >= _TELLING_SECONDS:
                last = pace.seconds
                self._say(self._on_the_way(name, pace))

        yield advance
        self._say(self._at_the_end(name, pace))

    @abstractmethod
    def _on_the_way(self, name: str, pace: Pace) -> str:
        """Return the line for a stage that goes on."""

    @abstractmethod
    def _at_the_end(self, name: str, pace: Pace) -> str:
        """Return the line for a stage that is done."""

    def note(self, line: str) -> None:
        self._say(line)

    def _say(self, line: str) -> None:
        print(self._safe(redacted(line)), file=self._stream, flush=True)

    @staticmethod
    def _safe(line: str) -> str:
        return sanitized(line)


class PlainLines(_Lines):
    """Lines for people who read a log."""

    def _on_the_way(self, name: str, pace: Pace) -> str:
        told = [f"{name}: {pace.done:,}" + (f" of {pace.total:,}" if pace.total else "") + f" {pace.unit}"]
        if pace.items_left is not None and pace.items_left[1]:
            told.append(f"about {pace.items_left[1]:,} {pace.items_left[0]} left")
        if pace.seconds_left is not None:
            told.append(f"{duration(pace.seconds_left)} left")
        return ", ".join(told) + (f" ({pace.described()})" if pace.rate is not None else "")

    def _at_the_end(self, name: str, pace: Pace) -> str:
        return f"{name}: done, {pace.done:,} {pace.unit} in {pace.seconds:.1f} s"


class JsonLines(_Lines):
    """Lines for programs: an object each, with event ("progress" or "done"), stage, done, total, unit, seconds and
    seconds_left; where there are items, also about how many of them are left, as documents_left.
    """

    def _on_the_way(self, name: str, pace: Pace) -> str:
        return self._object("progress", name, pace)

    def _at_the_end(self, name: str, pace: Pace) -> str:
        return self._object("done", name, pace)

    def note(self, line: str) -> None:
        self._say(json.dumps({"event": "note", "message": line}, ensure_ascii=False))

    @staticmethod
    def _safe(line: str) -> str:
        return sanitized_json(line)

    def _object(self, event: str, name: str, pace: Pace) -> str:
        left = 0.0 if event == "done" else pace.seconds_left
        content: dict[str, Any] = {
            "event": event,
            "stage": name,
            "done": pace.done,
            "total": pace.total,
            "unit": pace.unit,
            "seconds": round(pace.seconds, 3),
            "seconds_left": None if left is None else round(left, 3),
        }
        if pace.items_left is not None:
            content[f"{pace.items_left[0]}_left"] = 0 if event == "done" else pace.items_left[1]
        return json.dumps(content, ensure_ascii=False)


class Bars:
    """A bar for each stage with its rate and the time left. For terminals."""

    @contextmanager
    def stage(
        self,
        name: str,
        unit: str,
        total: int | None = None,
        items: Items | None = None,
        work: Work | None = None,  # noqa: ARG002
    ) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} " + unit),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
        )
        pace = Pace(unit, total, items)
        with RichProgress(*columns, console=Console(file=_unwrapped(sys.stderr))) as bars:
            task = bars.add_task(name, total=total, told="")

            def advance(amount: int) -> None:
                pace.add(amount)
                told = [pace.described()]
                if pace.items_left is not None:
                    told.append(f"{pace.items_left[1]:,} {pace.items_left[0]} left")
                if pace.seconds_left is not None:
                    told.append(f"{duration(pace.seconds_left)} left")
                bars.update(task, advance=amount, told=", ".join(filter(None, told)))

            yield advance

    def note(self, line: str) -> None:
        print(sanitized(redacted(line)), file=sys.stderr, flush=True)


def _unwrapped(stream: TextIO) -> TextIO:
    """Return the stream itself, made safe for a terminal: bars move the cursor, and hold no text but ours."""
    inner: TextIO = getattr(stream, "_stream", stream)
    return inner


def for_stream(stream: TextIO = sys.stderr) -> Progress:
    """Choose bars where people look at a terminal, plain lines in a log."""
    return Bars() if stream.isatty() else PlainLines(stream)
