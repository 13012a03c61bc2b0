"""One select, four solves and two reports at once in one run: each ends well, or is refused in a line."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from markupsafe import Markup

from direct_anneal.errors import InputError
from direct_anneal.report import write_report
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import select_again
from selection.pools import chosen, write_world
from selection.tiny import files_below

ROUNDS = int(os.environ.get("DIRECT_ANNEAL_ROUNDS", "3"))


@pytest.fixture(scope="module")
def world(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, and a finished run over them."""
    directory = write_world(tmp_path_factory.mktemp("at-once"))
    chosen(checkpoint, directory, directory / "run")
    return directory


def test_readers_and_a_writer_do_not_disturb_each_other(
    checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Figures take most of a round's time, and are drawn of what was read before.
    monkeypatch.setattr("direct_anneal.report.figures.draw", lambda *_, **__: Markup(""))
    alone = files_below(select_again(world / "run", out=tmp_path / "alone", num_samples=7).out)
    for number in range(ROUNDS):
        run = Path(shutil.copytree(world / "run", tmp_path / f"run{number}"))
        shutil.rmtree(run / "features" / "pool-ngrams")  # so that select has something to write
        solved = [tmp_path / f"solved{number}-{one}" for one in range(4)]
        jobs: list[Callable[[], object]] = [lambda run=run: chosen(checkpoint, world, run, overwrite=True)]  # type: ignore[misc]
        jobs += [lambda run=run, out=out: select_again(run, out=out, num_samples=7) for out in solved]  # type: ignore[misc]
        jobs += [lambda run=run: write_report(run)] * 2  # type: ignore[misc]
        together = threading.Barrier(len(jobs))

        def begin(job: Callable[[], object], together: threading.Barrier = together) -> str | None:
            together.wait()
            try:
                job()
            except InputError as error:  # anything else fails the test
                return str(error)
            return None

        with ThreadPoolExecutor(len(jobs)) as pool:
            refused = list(pool.map(begin, jobs))
        assert refused[0] is None  # who holds the run is disturbed by nobody
        assert not any("\n" in told for told in refused if told)
        assert not [
            finding for finding in verify_run(run) if not finding.harmless and "report" not in finding.place.name
        ]
        assert not list(run.rglob("*.tmp"))
        for out, told in zip(solved, refused[1:5], strict=True):
            if told is None:
                assert files_below(out)["selection.parquet"] == alone["selection.parquet"]
