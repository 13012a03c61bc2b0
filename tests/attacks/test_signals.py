"""Ctrl-C and SIGTERM at every command, three times each: one line, the signal's exit code, and it goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq
import pytest
import torch

from convert.checkpoints import adam_after_steps, model_of, save, torchtitan_state
from direct_anneal.cli import COMMANDS
from direct_anneal.distill import write_scorer
from direct_anneal.progress import Advance, Silent
from distill.conftest import random_scorer
from selection.pools import chosen, write_world
from selection.tiny import SKETCH_SIZE, documents, start, write_jsonl

# Runs, scorers and outputs lie in a place that is named by secrets: nothing that is written or printed tells it.
HUB, HELD = "hf" + "_" + "AbCdEfGhIjKlMnOpQrStUv", "environments-own-secret"
SECRET = Path(HUB) / HELD
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SHARE = ("--fraction", "0.25")
NOTHING_KEPT = {"plan", "verify", "export", "weights", "convert", "init", "doctor"}
# Where each is struck; those without a stage as they begin.
STAGES = {
    "select": "Gradients of the pool",
    "features": "Gradients of the pool",
    "plan": "Reading some documents",
    "solve": "Choosing",
    "verify": "",
    "report": "",
    "export": "Writing",
    "distil": "Reading the pool",
    "score": "Scoring",
    "merge": "",
    "weights": "",
    "convert": "Converting the weights",
    "anneal": "Annealing",
    "evaluate": "Scoring",
    "compare": "Runs",
    "init": "",
    "doctor": "",
    "demo": "Making the demo's documents",
}
RUN_AGAIN = sorted(
    STAGES.keys() - {"demo", "distil", "merge", "plan", "doctor"}
)  # those take long, or need more than is here


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


def struck(words: list[str], log: Path, number: int | None) -> None:
    """The command, struck three times: at work, while it says so, and at its end. For `start`."""
    from direct_anneal import cli
    from direct_anneal.__main__ import begin

    os.environ["DB_PASSPHRASE"] = HELD
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in a shell's background would ignore
    with log.open("w") as stream, log.with_name("printed").open("w") as printed:
        os.dup2(stream.fileno(), 2)
        os.dup2(printed.fileno(), 1)
    sys.stderr = os.fdopen(2, "w", buffering=1)  # by lines, as Python has it
    if number is None:
        begin(words)
    sys.stderr = _StruckAgain(sys.stderr, number)  # type: ignore[assignment]
    if stage := STAGES[words[0]]:
        cli.progress_of = lambda given: _struck(given, stage, number)  # type: ignore[assignment]
    else:
        cli.COMMANDS = tuple(
            replace(command, run=lambda _: os.kill(os.getpid(), number)) if command.name == words[0] else command
            for command in cli.COMMANDS
        )
    try:
        begin(words)
    finally:
        os.kill(os.getpid(), number)  # nothing is left to be said: the exit code stays


def _struck(given: dict[str, Any], stage: str, number: int) -> _Struck:
    given.pop("quiet", None)
    return _Struck(stage, number)


@pytest.fixture(scope="module")
def world(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, a run over it, a scorer, a recipe, and a checkpoint of another kind."""
    directory = write_world(tmp_path_factory.mktemp("struck"))
    (directory / SECRET).mkdir(parents=True)
    texts = write_jsonl(directory / "texts.jsonl", documents(24, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DB_PASSPHRASE", HELD)
        chosen(checkpoint, directory, directory / SECRET / "run")
        chosen(checkpoint, directory, directory / SECRET / "of-texts", pool=str(texts))
    write_scorer(random_scorer(), directory / SECRET / "scorer")
    model = model_of("llama")
    model.config.save_pretrained(directory / SECRET / "config")
    (directory / "dcp").mkdir()
    save(directory / "dcp", torchtitan_state(model, adam_after_steps(model), old=False))
    held_out = str(write_jsonl(directory / "held_out.jsonl", documents(24, seed=2)))
    files = {**dict.fromkeys(("pool", "validation"), str(directory / "texts.jsonl")), "held_out": held_out}
    recipe = {
        "model": str(checkpoint),
        "scenarios": {"one": {**files, "target": ["prose"]}},
        "arms": {"random": {"baseline": "random"}},
        "seeds": [0],
        "fractions": [0.25],
        "anneal": {"learning_rate": 0.01, "batch_size": 2, "max_length": 32},
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe))
    return directory


def words_of(command: str, model: Path, world: Path, out: Path) -> list[str]:
    kept = world / SECRET
    window = ["--batch-size", "4", "--max-length", "16", "--num-tokens", "256"]
    sketched = ["--model", model, "--pool", world / "pool", "--validation", world / "validation.jsonl"]
    sketched += ["--sketch-size", SKETCH_SIZE]
    energy = ["--objective", "energy", *SHARE]
    given: dict[str, list[Any]] = {
        "select": [*sketched, *energy],
        "features": sketched,
        "plan": [*sketched, *energy],
        "solve": [kept / "run", "--num-samples", "5"],
        "verify": [kept / "run"],
        "report": [kept / "run"],
        "export": [kept / "run", "--to", "jsonl"],
        "distil": [kept / "of-texts"],
        "score": ["--scorer", kept / "scorer", "--pool", world / "texts.jsonl", "--workers", "1", *SHARE],
        "merge": [kept / "run"],
        "weights": [kept / "run", "--to", "megatron"],
        "convert": [world / "dcp", "--model-config", kept / "config"],
        "anneal": ["--model", model, "--data", world / "texts.jsonl", "--learning-rate", "0.01", *window],
        "evaluate": ["--model", model, "--data", world / "texts.jsonl"],
        "compare": [world / "recipe.yaml"],
        "init": ["select"],
        "doctor": [],
        "demo": [],
    }
    without = {"verify", "report", "merge", "doctor"}
    return [command, *map(str, given[command]), *([] if command in without else ["--out", str(out)])]


def test_every_command_is_struck() -> None:
    assert STAGES.keys() == {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", STAGES)
def test_a_command_that_is_struck_ends_in_a_line_and_goes_on(
    checkpoint: Path, world: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / SECRET).mkdir(parents=True)
    out = tmp_path / SECRET / "out"
    words = words_of(command, checkpoint, world, out)
    for number, code in CODES.items():
        process = start(struck, words, tmp_path / "log", int(number))
        process.join()
        told = (tmp_path / "log").read_text()
        assert process.exitcode == code, told
        what = "nothing of it is kept; to begin again" if command in NOTHING_KEPT else "what was done is kept; to go on"
        assert [line.partition(": direct-anneal ")[0] for line in told.splitlines()] == [
            f"direct-anneal: {'interrupted' if number == signal.SIGINT else 'ended by SIGTERM'}: {what}"
        ]
    if command not in RUN_AGAIN:
        return
    process = start(struck, [*words, "--quiet"], tmp_path / "log", None)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert not (tmp_path / "log").read_text()
    assert out.exists() == ("--out" in words)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(telling(tmp_path)) + list(telling(world / SECRET))


def telling(directory: Path) -> Iterator[str]:
    """Yield the files that hold one of the secrets, packed or plain."""
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content = str(pq.read_table(path).to_pydict()).encode()
            if HUB.encode() in content or HELD.encode() in content:
                yield path.name
