"""Jobs that are killed at any time go on, and end in the bytes of one that was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from direct_anneal.cli import main
from direct_anneal.config.score import MergeConfig, ScoreConfig
from direct_anneal.distill.scoring import merge, score
from distill.test_score import pool as pool  # a fixture
from selection.tiny import files_below, start


def _killed_after(count: int, options: dict[str, Any]) -> None:
    """Score, and kill the process with SIGKILL when it is about to put its `count`-th file in place."""
    from direct_anneal.distill.scoring import score

    replaced = os.replace

    def counting(*arguments: Any, **named: Any) -> None:
        nonlocal count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replaced(*arguments, **named)

    os.replace = counting
    Path.replace = lambda path, target: (counting(path, target), Path(target))[1]  # type: ignore[method-assign,assignment]
    score(ScoreConfig(**options))


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_a_killed_score_goes_on(scorer: Path, pool: Path, tmp_path: Path, count: int) -> None:
    options = {"scorer": str(scorer), "pool": (str(pool),), "workers": 1, "fraction": 0.3}
    score(ScoreConfig(**options, out=str(tmp_path / "whole")))
    process = start(_killed_after, count, {**options, "out": str(tmp_path / "out")})
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("scores/*.json")}
    score(ScoreConfig(**options, out=str(tmp_path / "out")))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items()), "what was done is not done again"


def test_one_of_three_jobs_is_killed(scorer: Path, pool: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"scorer": str(scorer), "pool": (str(pool),), "workers": 1}
    score(ScoreConfig(**options, fraction=0.3, out=str(tmp_path / "whole")))
    jobs = {**options, "out": str(tmp_path / "out")}
    process = start(_killed_after, 4, {**jobs, "shards": "1/3"})
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    for number in (0, 2, 1):
        score(ScoreConfig(**jobs, shards=f"{number}/3"))
    merge(MergeConfig(run=str(tmp_path / "out"), fraction=0.3, workers=1))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_the_commands_say_what_was_done(
    scorer: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = str(tmp_path / "out"), ["--scorer", str(scorer), "--pool", str(pool), "--workers", "1"]
    for number in range(2):
        assert main(["score", *given, "--out", out, "--shards", f"{number}/2"]) == 0
    assert "this job has 3 sources" in capsys.readouterr().out
    assert main(["merge", out, "--fraction", "0.25", "--exact"]) == 0
    told = capsys.readouterr().out
    assert "80 documents scored" in told
    assert "left out: 1 bad-line, 1 empty-text, 1 no-text" in told
    assert f"{out}/selected: 20 documents, about" in told
    assert main(["merge", out, "--exact"]) == 2
    assert "--exact must come with a size: pass --fraction, too" in capsys.readouterr().err
    assert main(["score", *given, "--out", out, "--shards", "2/2"]) == 2
    assert "--shards must be I/N" in capsys.readouterr().err
