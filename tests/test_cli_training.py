"""`anneal` and `evaluate` from the command line: what they print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from direct_anneal.cli import main
from selection.tiny import documents, write_jsonl

pytest.importorskip("accelerate", reason="annealing needs the extra 'anneal'")

ANNEAL = ["anneal", "--model", "x", "--data", "x", "--out", "y"]
RATED = [*ANNEAL, "--learning-rate", "0.1"]


def test_anneal_then_evaluate(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", documents(20, seed=3))
    words = ["anneal", "--model", checkpoint, "--data", data, "--out", tmp_path / "model", "--learning-rate", "0.01"]
    assert main([str(word) for word in [*words, "--epochs", "2", "--batch-size", "2"]]) == 0
    captured = capsys.readouterr()
    assert "annealed on 20 documents" in captured.out
    assert "Traceback" not in captured.err
    words = ["evaluate", "--model", tmp_path / "model", "--data", data, "--out", tmp_path / "scores"]
    assert main([str(word) for word in words]) == 0
    assert "mean of domains" in capsys.readouterr().out


def test_what_is_left_out_is_told(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selection whose sources name their text differently says so, too."""
    records = documents(20, seed=3)
    data = write_jsonl(tmp_path / "data.jsonl", records[:12] + [{"body": record["text"]} for record in records[12:]])
    for command, more in (("anneal", ["--learning-rate", "0.01", "--epochs", "1"]), ("evaluate", [])):
        words = [command, "--model", str(checkpoint), "--data", str(data), *more, "--out", str(tmp_path / command)]
        assert main(words) == 0
        assert "data: records left out: 8 no-text" in capsys.readouterr().err
        assert main([*words, "--overwrite", "--text-field", "text", "body"]) == 0
        assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["anneal", "--model", "x"], "anneal needs --data, --out, --learning-rate"),
        ([*ANNEAL, "--epochs", "1"], "anneal needs --learning-rate: "),
        ([*ANNEAL, "--epochs", "1", "--learning-rate", "0"], "--learning-rate must be above 0 and below 10, got 0.0"),
        ([*RATED, "--epochs", "inf"], "--epochs must be finite, got inf"),
        ([*RATED, "--epochs", "1", "--seed", "1099511627776"], "--seed must be in 0..4294967295, got 1099511627776"),
        ([*RATED, "--epochs", "1", "--beta1", "1"], "--beta1 must be in [0, 1), got 1.0"),
        ([*RATED, "--epochs", "1", "--mix", "x"], "--mix-share must be above 0 with --mix, got 0.0"),
        ([*RATED, "--epochs", "1", "--mix", "x", "--mix-share", "-0.1"], "--mix-share must be in [0, 1), got -0.1"),
        ([*RATED, "--epochs", "1", "--mix", "x", "--mix-share", "nan"], "--mix-share must be finite, got nan"),
        (["evaluate", "--data", "x"], "evaluate needs --model, --out"),
        (["evaluate", "--model", "x", "--out", "y"], "something to score on"),
        (["evaluate", "--model", "x", "--out", "y", "--benchmark", "piqa"], "--benchmark must be NAME=FILE"),
        (["evaluate", "--data", "x", "--model", "./none", "--out", "y"], "./none does not exist"),
    ],
)
def test_refused_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("steps", "told"),
    [(1, "over the last step"), (3, "over the last 3 steps"), (10, "over the last 10 steps"), (12, "the last 2 steps")],
)
def test_the_last_loss_is_told_with_its_steps(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, told: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", documents(20, seed=3))
    words = ["anneal", "--model", checkpoint, "--data", data, "--out", tmp_path / "model", "--learning-rate", "0.01"]
    words += ["--batch-size", "2", "--max-length", "32", "--num-tokens", str(steps * 64)]
    assert main([str(word) for word in words]) == 0
    assert told in capsys.readouterr().out
