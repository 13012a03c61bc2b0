"""Ctrl-C and SIGTERM, three times each: one line, the exit code of the signal, and the same command goes on."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from convert.checkpoints import adam_after_steps, model_of, save, torchtitan_state
from direct_anneal.distill import write_scorer
from direct_anneal.progress import Advance, Silent
from distill.conftest import random_scorer
from selection.pools import chosen, write_world
from selection.tiny import SKETCH_SIZE, documents, start, write_jsonl

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SHARE = ("--fraction", "0.25")
STAGES = {
    "select": "N-grams of the pool",
    "solve": "Choosing",
    "export": "Writing",
    "score": "Scoring",
    "convert": "Converting the weights",
    "anneal": "Annealing",
}


class _Struck(Silent):
    """Sends a signal to this process at the first advance of a stage."""

    def __init__(self, stage: str, number: int) -> None:
        self._stage, self._number = stage, number

    @contextmanager
    def stage(self, name: str, *_: Any, **__: Any) -> Iterator[Advance]:
        left = [self._number] if name == self._stage else []

        def advance(_: int) -> None:
            if left:
                os.kill(os.getpid(), left.pop())

        yield advance


class _StruckAgain:
    """A stream that is struck while the last line is written, and leaves a blow for the interpreter's end."""

    def __init__(self, stream: TextIO, number: int) -> None:
        self._stream, self._number = stream, number

    def write(self, text: str) -> int:
        if "to go on" in text:
            os.kill(os.getpid(), self._number)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def struck(words: list[str], log: Path, stage: str, number: int) -> None:
    """The command, struck three times: at work, while it says so, and at its end. For `start`."""
    from direct_anneal import cli

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in a shell's background would ignore
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 2)
    sys.stderr = _StruckAgain(os.fdopen(2, "w"), number)  # type: ignore[assignment]
    cli.progress_of = lambda given: _struck(given, stage, number)  # type: ignore[assignment]
    if stage:
        atexit.register(os.kill, os.getpid(), number)
    cli.entry_point(words)


def _struck(given: dict[str, Any], stage: str, number: int) -> _Struck:
    given.pop("quiet", None)
    return _Struck(stage, number)


@pytest.fixture(scope="module")
def world(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, a run over it, a scorer, and a checkpoint of another kind."""
    directory = write_world(tmp_path_factory.mktemp("struck"))
    chosen(checkpoint, directory, directory / "run")
    write_jsonl(directory / "texts.jsonl", documents(12, seed=1))
    write_scorer(random_scorer(), directory / "scorer")
    model = model_of("llama")
    model.config.save_pretrained(directory / "config")
    (directory / "dcp").mkdir()
    save(directory / "dcp", torchtitan_state(model, adam_after_steps(model), old=False))
    return directory


def words_of(command: str, model: Path, world: Path, out: Path) -> list[str]:
    window = ["--batch-size", "4", "--max-length", "16", "--num-tokens", "256"]
    validation = ["--validation", world / "validation.jsonl"]
    given: dict[str, list[Any]] = {
        "select": [
            "--model",
            model,
            "--pool",
            world / "pool",
            *validation,
            "--sketch-size",
            SKETCH_SIZE,
            *SHARE,
            "--objective",
            "matching",
        ],
        "solve": [world / "run", "--num-samples", "5"],
        "export": [world / "run", "--to", "jsonl"],
        "score": ["--scorer", world / "scorer", "--pool", world / "texts.jsonl", "--workers", "1", *SHARE],
        "convert": [world / "dcp", "--model-config", world / "config"],
        "anneal": ["--model", model, "--data", world / "texts.jsonl", "--learning-rate", "0.01", *window],
    }
    return [command, *map(str, given[command]), "--out", str(out)]


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("command", STAGES)
def test_a_command_that_is_struck_ends_in_a_line_and_goes_on(
    checkpoint: Path, world: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    words = words_of(command, checkpoint, world, tmp_path / "out")
    process = start(struck, words, tmp_path / "log", STAGES[command], int(number))
    process.join()
    told = (tmp_path / "log").read_text()
    assert process.exitcode == CODES[number], told
    assert [line.partition("; to go on: ")[0] for line in told.splitlines()] == [
        f"direct-anneal: {'interrupted' if number == signal.SIGINT else 'ended by SIGTERM'}: what was done is kept"
    ]
    process = start(struck, [*words, "--quiet"], tmp_path / "log", "", int(number))
    process.join()
    assert process.exitcode == 0
    assert not (tmp_path / "log").read_text()
    assert (tmp_path / "out").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
