"""`verify`: whether a run is what it was when it was written."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from direct_anneal.cli.command import Command
from direct_anneal.config.files import VerifyConfig
from direct_anneal.errors import InputError

if TYPE_CHECKING:
    from direct_anneal.features import Finding


def _verify(options: dict[str, Any]) -> dict[str, Any]:
    directory = Path(options["directory"])
    checked, findings = _checked(directory)
    damages = 0
    for finding in findings:
        print(finding)
        damages += not finding.harmless
    if damages:
        raise InputError(
            subject=str(directory),
            must="be complete and undamaged",
            got=f"but has {damages:,} faults",
            do="follow the lines above",
        )
    print(f"{directory}: {', '.join(checked)}: all files are complete and undamaged")
    return {"command": "verify", "directory": str(directory), "stores": checked}


def _checked(directory: Path) -> tuple[list[str], Iterable[Finding]]:
    """Return the scope of a check and its findings: a run, its features, or one store of them."""
    from direct_anneal.features import verify
    from direct_anneal.io.lock import MARK
    from direct_anneal.run.layout import LOSSES, RETAIN
    from direct_anneal.run.verify_run import STORES, is_sketched, verify_run, verify_stores

    features = directory / "features"
    usual = [*(STORES if is_sketched(features) else ()), *(n for n in (RETAIN, LOSSES) if (features / n).is_dir())]
    if any((directory / name).exists() for name in (MARK, "manifest.json", "corpus")):
        return ["the run", *usual], verify_run(directory)
    if features.is_dir():
        return usual, verify_stores(features)
    if _is_store(directory):
        return [directory.name], verify(directory)
    stores = list(filter(_is_store, sorted(directory.iterdir()))) if directory.is_dir() else []
    if not stores:
        raise InputError(
            subject="DIR",
            must="hold a run or features",
            got=f"but {directory} has none",
            do="pass what was given to select as the output directory",
        )
    return [store.name for store in stores], chain.from_iterable(map(verify, stores))


def _is_store(directory: Path) -> bool:
    """Tell whether a store of features lies there, be it without its header."""
    return (directory / "store.json").exists() or any(directory.glob("features-*.*"))


VERIFY = Command(
    name="verify",
    help="check every file of a run for damage",
    description="Check every file of a run, or of features alone, and name the damaged ones. Nothing is changed.",
    config=VerifyConfig,
    run=_verify,
    takes_file=False,
)
