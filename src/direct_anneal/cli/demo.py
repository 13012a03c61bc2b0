"""`demo`: the main job on a model and a pool that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes, quieten_transformers
from direct_anneal.config.files import DemoConfig


def _demo(options: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from direct_anneal.demo.walkthrough import run_demo

    quieten_transformers()
    out = DemoConfig(**options).out
    run_demo(Path(out), console=Console())
    return {"command": "demo", "out": out}


DEMO = Command(
    name="demo",
    help="run an example that comes with the package",
    description="Run a selection on a small model and 500 documents that come with the package, and explain the "
    "result. It takes two or three minutes.",
    config=DemoConfig,
    run=_demo,
    writes=Writes(files=("data/", "selection/"), earlier=None),
    takes_file=False,
)
