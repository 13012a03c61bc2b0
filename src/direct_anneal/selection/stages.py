"""The stages of a run: shown while they last, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from direct_anneal.progress import Advance, Items, Progress, Work

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time that one stage took.

    Attributes:
        seconds: from its beginning to its end.
        start_up: seconds before its pace, such as for loading a model.
        share: of its whole length that it went; below 1 where it found that it could end.
        work: what the seconds after the start-up grow with; None where they do not grow.
    """

    seconds: float
    start_up: float
    share: float
    work: Work | None

    def at(self, ratio: float) -> float:
        """Return seconds at its whole length, with so many times the work."""
        return self.start_up + (self.seconds - self.start_up) * ratio / self.share


class Stages:
    """Progress, and the time of each stage that ended well.

    Args:
        progress: where stages are shown.
        clock: seconds.
    """

    def __init__(self, progress: Progress, clock: Clock = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self.timings: dict[str, Timing] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, by name."""
        return {name: round(timing.seconds, 3) for name, timing in self.timings.items()}

    @contextmanager
    def stage(
        self, name: str, unit: str, total: int | None = None, items: Items | None = None, work: Work | None = None
    ) -> Iterator[Advance]:
        """See `Progress.stage`."""
        began, done, first = self._clock(), 0, (0.0, 0)
        with self._progress.stage(name, unit, total, items) as advance:

            def counted(amount: int) -> None:
                nonlocal done, first
                done += amount
                if done and not first[1]:
                    first = self._clock() - began, done
                advance(amount)

            yield counted
        seconds, (since, amount) = self._clock() - began, first
        start_up = 0.0
        if done > amount > 0:  # the first amount waited for whatever is done once; where all came at once, who knows
            start_up = max(0.0, since - amount * (seconds - since) / (done - amount))
        share = done / total if total and 0 < done < total else 1.0
        self.timings[name] = Timing(seconds=seconds, start_up=start_up, share=share, work=work)

    def note(self, line: str) -> None:
        """See `Progress.note`."""
        self._progress.note(line)
