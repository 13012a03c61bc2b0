"""The commit of the code that made a result."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit of the source tree, with "+changes" where files of the package differ from it; else the
    version.
    """
    found = _git("rev-parse", "--short=12", "HEAD")
    # A package inside somebody else's repository is not of its commit.
    if found is None or not _git("ls-files", "--", str(_SOURCE / "__init__.py")):
        return f"version {version('direct-anneal')}"
    return found + ("+changes" if _git("status", "--porcelain", "--", str(_SOURCE)) else "")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_SOURCE), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
