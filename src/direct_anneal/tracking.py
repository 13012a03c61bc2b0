"""Trackers: TensorBoard, wandb or trackio, which get the numbers of a run beside the run's own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError
from direct_anneal.io.digests import short_hash
from direct_anneal.io.redaction import redacted

PROJECT = "direct-anneal"
DIRECTORY = "tracking"  # below a run's own

Log = Callable[[Mapping[str, float], int], None]


def require_tracker(name: str) -> None:
    """Refuse a tracker whose library is missing, before any work is done.

    Raises:
        InputError: it is not installed.
    """
    if name != "none" and find_spec(name) is None:
        raise InputError(
            field="track",
            must="name an installed library",
            got=f"but {name} is not installed",
            do=f"pip install 'direct-anneal[{name}]', or leave it out",
        )


@contextmanager
def tracking(name: str, out: Path, config: Mapping[str, Any]) -> Iterator[Log]:
    """Open a tracker's run for the duration of the block.

    A run that goes on after a kill goes on in the same run of the tracker. TensorBoard writes below OUT/tracking and
    needs no network. wandb and trackio go where their own environment says (WANDB_MODE=offline, TRACKIO_DIR).

    Args:
        name: none, tensorboard, wandb or trackio.
        out: directory of the run; its name is the run's name.
        config: options, shown there without secrets. Equal options in the same directory are the same run.

    Yields:
        a function that logs numbers by name at a step.

    Raises:
        InputError: the library is missing, or cannot open a run.
    """
    require_tracker(name)
    if name == "none":
        yield lambda metrics, step: None  # noqa: ARG005
        return
    try:
        log, close = _OPENERS[name](out, redacted(json.loads(json.dumps(dict(config), default=str))))
    except Exception as error:  # each library has its own
        raise InputError(
            field="track",
            must="name a tracker that can be written to",
            got=f"but {name} says: {' '.join(str(error).split())[:200]}",
            do="log in there, work offline (WANDB_MODE=offline), or leave it out",
        ) from error
    try:
        yield log
    finally:
        close()


def _identity(out: Path, config: dict[str, Any]) -> str:
    content = json.dumps([str(out.resolve()), config], sort_keys=True)
    return short_hash(content, 8)


def _tensorboard(out: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], object]]:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(out / DIRECTORY / "tensorboard"))
    writer.add_text("options", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(out: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], object]]:
    directory = out / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    run = import_module("wandb").init(
        project=PROJECT,
        name=out.name,
        id=_identity(out, config),
        resume="allow",
        dir=str(directory),
        config=config,
    )
    return lambda metrics, step: run.log(dict(metrics), step=step), run.finish


def _trackio(out: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], object]]:
    trackio = import_module("trackio")
    name = f"{out.name}-{_identity(out, config)}"  # trackio knows runs by their names
    trackio.init(project=PROJECT, name=name, resume="allow", config=config)
    return lambda metrics, step: trackio.log(dict(metrics), step=step), trackio.finish


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
