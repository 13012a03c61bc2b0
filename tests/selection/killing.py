"""Processes that a test kills: what they run, and what must be the same in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from direct_anneal.features import FeatureStore
from direct_anneal.io.lock import held
from direct_anneal.selection import sketching
from selection.tiny import command_line, files_below

ROWS_PER_SHARD = 8


def command_in_small_shards(words: Sequence[str], log: Path) -> None:
    """`command_line` with shards of a few rows, so that a tiny run has many of them."""
    sketching.FeatureStore = partial(FeatureStore, rows_per_shard=ROWS_PER_SHARD)  # type: ignore[misc, assignment]
    command_line(words, log)


def hold(directory: Path) -> None:
    """Hold a directory until killed."""
    with held(directory):
        time.sleep(600)


def content(out: Path) -> dict[str, Any]:
    """Every file of a run with its bytes: the manifest without its seconds, and without the directory's name as the
    options are; the report shows both, so that of this it counts that it is there."""
    files: dict[str, Any] = dict(files_below(out))
    written, options = (json.loads(files[name]) for name in ("manifest.json", "options.json"))
    del written["timings"], written["config"]["out"], written["seal"], options["out"]
    report = {"report.html": "report.html" in files}
    return {**files, "manifest.json": written, "options.json": options, **report}
