"""`verify`: whether features are what they were when they were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command
from direct_anneal.config.files import VerifyConfig
from direct_anneal.errors import InputError

_ROLES = ("validation", "validation-ngrams", "pool", "pool-ngrams")  # the stores of a run


def _verify(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.features import Finding, verify

    directory = Path(options["directory"])
    stores = list(_stores(directory))
    if not stores:
        raise InputError(f"DIR must hold features, but {directory} has none: pass what was given to select as --out")
    damages = 0
    for store in stores:
        absent = [Finding(store, "no features are there", "run select again, it computes them")]
        for finding in verify(store) if store.is_dir() else absent:
            print(finding)
            damages += not finding.harmless
    if damages:
        raise InputError(f"{directory} must be whole, but has {damages:,} damages: do what the lines above say")
    print(f"{directory}: {', '.join(store.name for store in stores)}: every shard is there and whole")
    return {"command": "verify", "directory": str(directory), "stores": [store.name for store in stores]}


def _stores(directory: Path) -> Iterator[Path]:
    """The directory itself, or those of its features; of a run, also those that should be there."""
    if _is_store(directory):
        yield directory
        return
    features = directory / "features"
    if features.is_dir():
        yield from (features / role for role in _ROLES)
    elif directory.is_dir():
        yield from filter(_is_store, sorted(directory.iterdir()))


def _is_store(directory: Path) -> bool:
    """Also where the header is lost."""
    return (directory / "store.json").exists() or any(directory.glob("features-*.*"))


VERIFY = Command(
    name="verify",
    help="check the features of a run, byte by byte",
    description="Check every shard of a run's features, and name the damaged ones. Nothing is changed.",
    config=VerifyConfig,
    run=_verify,
    takes_file=False,
)
