"""No secret in what is written or printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from direct_anneal.cli import main
from direct_anneal.export.registry import FORMATS
from direct_anneal.io.redaction import redacted
from selection.tiny import documents, files_below, write_jsonl

# Put together here so that no scanner takes this file for a leak.
HUB = "hf" + "_" + "AbCdEfGhIjKlMnOpQrStUv"
CLOUD = "AK" + "IA" + "ABCDEFGHIJKLMNOP"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:secret@bucket/pool", "s3://***@bucket/pool"),
        ("https://token@huggingface.co/a/b", "https://***@huggingface.co/a/b"),
        ("https://x/y?a=1&X-Amz-Signature=abc&b=2", "https://x/y?a=1&X-Amz-Signature=***&b=2"),
        ("https://x/y?sig=abc", "https://x/y?sig=***"),
        (f"model {HUB} is", "model *** is"),
        (f"{CLOUD}", "***"),
        ("runs/a@b/pool-*.jsonl", "runs/a@b/pool-*.jsonl"),
        ("tokens=4 s3://bucket/key/of/tokens", "tokens=4 s3://bucket/key/of/tokens"),
        ("gaussian, two-sided, --num-tokens 5000", "gaussian, two-sided, --num-tokens 5000"),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, left: str) -> None:
    assert redacted(text) == left


def test_values_of_the_environment_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_TOKEN", "true")  # too short to be one
    content: dict[str, Any] = {"a": ["x 0123456789abcdef y", "true"], "b": {"0123456789abcdef": 3}, "c": None}
    assert redacted(content) == {"a": ["x *** y", "true"], "b": {"***": 3}, "c": None}


def test_a_run_in_a_place_named_by_a_token_keeps_it_to_itself(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In paths, in field names, in the environment; and the run can be resumed all the same."""
    held = "environments-own-secret"
    monkeypatch.setenv("HF_TOKEN", held)
    place = tmp_path / HUB
    place.mkdir()
    pool = write_jsonl(place / "pool.jsonl", [{**one, held: one["domain"]} for one in documents(12, seed=1)])
    validation = write_jsonl(tmp_path / "validation.jsonl", documents(6, seed=2, prefix="v"))
    words = ["select", "--model", checkpoint, "--pool", pool, "--validation", validation, "--fraction", "0.5"]
    words += ["--sketch-size", "16", "--out", tmp_path / "out", "--domain-field", held]
    for _ in range(2):  # what was written without secrets is recognised again
        assert main([str(word) for word in words]) == 0
    records = {name: content for name, content in files_below(tmp_path / "out").items() if name.endswith(".json")}
    assert {"manifest.json", "options.json", "direct-anneal.json"} <= set(records)
    for name in ("manifest.json", "options.json", "direct-anneal.json"):
        assert HUB.encode() not in records[name], name
        assert held.encode() not in records[name], name
    assert json.loads(records["manifest.json"])["config"]["domain_field"] == "***"
    assert main(["select", "--model", f"https://user:pass@host/{HUB}", *map(str, words[3:])]) == 2
    told = capsys.readouterr().err
    assert "***" in told.splitlines()[-1]
    assert HUB not in told.splitlines()[-1]
    assert "user:pass" not in told


def test_no_writer_for_a_trainer_lets_a_secret_through(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run and exports lie in places named by one; records, files and what is printed for the trainer name places."""
    monkeypatch.setenv("DB_PASSPHRASE", "environments-own-secret")
    place = tmp_path / HUB / "environments-own-secret"
    place.mkdir(parents=True)
    pool = write_jsonl(tmp_path / "pool.jsonl", documents(12, seed=1))
    words = ["select", "--model", checkpoint, "--pool", pool, "--validation", pool, "--fraction", "0.5", "--quiet"]
    words += ["--objective", "energy", "--sketch-size", "16", "--out", place / "run"]
    assert main([str(word) for word in words]) == 0
    capsys.readouterr()
    for name in FORMATS:
        words = ["export", place / "run", "--to", name, "--out", place / name]
        words += ["--eos-id", "2"] if FORMATS[name].holds == "tokens" else []
        assert main([str(word) for word in words]) == 0, (name, capsys.readouterr().err)
        printed, files = capsys.readouterr(), files_below(place / name)
        assert "export.json" in files
        for content in (printed.out.encode(), printed.err.encode(), *files.values()):
            assert HUB.encode() not in content, name
            assert b"environments-own-secret" not in content, name
