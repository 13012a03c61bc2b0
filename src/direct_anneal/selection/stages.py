"""The stages of a run: shown while they last, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from direct_anneal.progress import Advance, Items, Progress


class Stages:
    """Progress, and the seconds that each stage took.

    Args:
        progress: where stages are shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None, items: Items | None = None) -> Iterator[Advance]:
        """See `Progress.stage`; the time counts when the stage ends well."""
        started = time.monotonic()
        with self._progress.stage(name, unit, total, items) as advance:
            yield advance
        self.seconds[name] = round(time.monotonic() - started, 3)

    def note(self, line: str) -> None:
        """See `Progress.note`."""
        self._progress.note(line)
