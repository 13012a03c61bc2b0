"""A run that takes long, for workers of `compare`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class SlowJob:
    """Leaves a file, and takes its time.

    Attributes:
        trace: the file.
    """

    trace: Path

    @property
    def recipe(self) -> NoReturn:
        self.trace.touch()
        time.sleep(600)
        raise AssertionError
