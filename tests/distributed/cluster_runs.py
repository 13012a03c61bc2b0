"""Tasks for workers of a test's cluster: found by name in every process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from direct_anneal.features import storage
from direct_anneal.gradients import GradientSketcher, Sketches
from features.extraction_runs import sketcher

BUSY_SECONDS = 0.3


@dataclass(frozen=True)
class Builder:
    """Builds the tests' sketcher.

    Attributes:
        checkpoint: where the model is.
        traces: where every worker leaves a file with its process id as its name and its node's as its content, and one
            named busy-<process id> while it works; each batch takes a while then.
        failing: how many reads of a process fail first.
    """

    checkpoint: Path
    traces: Path | None = None
    failing: int = 0

    def __call__(self) -> GradientSketcher:
        torch.set_num_threads(1)
        built = sketcher(self.checkpoint)
        if self.failing:
            storage.Directory.read = _failing(storage.Directory.read, self.failing)  # type: ignore[method-assign]
        if self.traces is not None:
            self.traces.mkdir(exist_ok=True)
            (self.traces / str(os.getpid())).write_text(ray.get_runtime_context().get_node_id())
            built.sketch = _slow(built.sketch, self.traces / f"busy-{os.getpid()}")  # type: ignore[method-assign]
        return built


def _slow(sketch: Callable[..., Sketches], trace: Path) -> Callable[..., Sketches]:
    def slow(*arguments: Any) -> Sketches:
        trace.touch()
        time.sleep(BUSY_SECONDS)
        try:
            return sketch(*arguments)
        finally:
            trace.unlink()

    return slow


def _failing(read: Callable[..., bytes], times: int) -> Callable[..., bytes]:
    left = times

    def failing(place: storage.Directory, name: str) -> bytes:
        nonlocal left
        if left > 0:
            left -= 1
            raise TimeoutError(f"{name} did not come in time")
        return read(place, name)

    return failing


@dataclass(frozen=True)
class Squaring:
    """Squares a number, later ones sooner; every third is lost with its worker the first time.

    Attributes:
        traces: where what was lost leaves a file.
    """

    traces: Path

    def __call__(self, item: int) -> int:
        trace = self.traces / str(item)
        if item % 3 == 0 and not trace.exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2 / (1 + item))
        return item**2


def gone(item: int) -> int:
    """Rows that only the driver has."""
    from direct_anneal.errors import InputError

    raise InputError(f"shard {item} cannot be read here")


def no_model() -> GradientSketcher:
    """A machine that lacks the checkpoint."""
    from direct_anneal.errors import InputError

    raise InputError(field="model", must="be a checkpoint directory or a hub name", got="but it does not exist here")
