"""`export` and `convert` from the command line: what they print, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from convert.checkpoints import model_of, save, torchtitan_state
from direct_anneal.cli import main
from direct_anneal.config.files import TrainerFormat
from direct_anneal.export import FORMATS
from selection.pools import chosen
from selection.tiny import VOCAB_SIZE, documents, write_jsonl


@pytest.fixture(scope="module")
def tokens_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a pool that is another run's export."""
    directory = tmp_path_factory.mktemp("run")
    write_jsonl(directory / "pool.jsonl", documents(24, seed=11))
    write_jsonl(directory / "validation.jsonl", documents(8, seed=12, prefix="v"))
    chosen(checkpoint, directory, directory / "first", pool=str(directory / "pool.jsonl"), fraction=1.0)
    for to in ("olmo-core", "megatron", "nanotron"):
        out = directory / "pool" / to
        words = ["export", directory / "first", "--to", to, "--out", out, "--shard-size", "2KB", "--seed", "3"]
        assert main([str(word) for word in words]) == 0
    chosen(checkpoint, directory, directory / "second")
    return directory


def test_the_formats_are_those_of_the_package() -> None:
    assert tuple(FORMATS) == get_args(TrainerFormat)


def test_what_was_exported_is_a_pool(tokens_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("selected.npy", "selected.bin", "selected.idx", "selected.ds", "selected.ds.index"):
        assert (tokens_run / "second" / name).exists()
    words = ["export", tokens_run / "second", "--to", "megatron", "--out", tmp_path / "out", "--mixture-share", "0.3"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "18 documents" in out  # a quarter of three times 24
    assert f"0.3 {tmp_path}/out/part-00000" in out
    assert "0.7 STABLE" in out


def test_convert_then_say_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("llama")
    model.config.save_pretrained(tmp_path / "config")
    save(tmp_path / "dcp", torchtitan_state(model, old=False))
    words = ["convert", tmp_path / "dcp", "--model-config", tmp_path / "config", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "21 weights" in out
    assert "under torchtitan's names; no optimizer's state" in out


def test_select_says_what_to_do_with_a_distributed_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "dcp", {"a": torch.ones(VOCAB_SIZE)})
    words = ["--pool", "x", "--validation", "x", "--out", str(tmp_path / "out"), "--fraction", "0.5"]
    assert main(["select", "--model", str(tmp_path / "dcp"), *words]) == 2
    assert "--model-config PATH --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export", ".", "--to", "hf", "--out", "y"], "must be the directory of a select or features run"),
        (["export", ".", "--to", "hf", "--out", "y", "--shard-size", "lots"], "--shard-size must be a number of bytes"),
        (["export", ".", "--to", "hf", "--out", "y", "--mixture-share", "2"], "--mixture-share must be in (0, 1]"),
        (["convert", ".", "--model-config", "./none", "--out", "y"], "./none does not exist"),
    ],
)
def test_refused_in_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
