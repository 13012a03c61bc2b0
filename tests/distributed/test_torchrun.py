"""`features` by two processes that torchrun starts, each with a part of every weight: the bytes of one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from direct_anneal.cli import main
from direct_anneal.errors import InputError
from direct_anneal.selection import compute_features, select
from selection.pools import options_of
from selection.tiny import command_line, documents, files_below, start, write_checkpoint, write_jsonl

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch came without gloo: no model is spread")

WAIT_SECONDS = 300


def _launched(rank: int, port: int, arguments: list[str], log: Path) -> None:
    """A process as torchrun starts it."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    command_line(arguments, log)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_checkpoint(directory / "model")
    write_jsonl(directory / "pool", documents(23, seed=2, prefix="p")).rename(directory / "pool.jsonl")
    write_jsonl(directory / "validation.jsonl", documents(9, seed=3, prefix="v", domains=("prose", "code")))
    return directory


def options(world: Path, out: Path) -> dict[str, Any]:
    given = options_of(world / "model", world, out)
    return {**given, "pool": str(world / "pool.jsonl"), "batch_tokens": 300, "max_length": 64}


def test_two_processes_give_the_bytes_of_one(world: Path, tmp_path: Path) -> None:
    whole = options(world, tmp_path / "one")
    compute_features(**whole)
    there = options(world, tmp_path / "two")
    words = [
        "features",
        *(word for name, value in there.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    ]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    processes = [start(_launched, rank, port, words, log) for rank, log in enumerate(logs)]
    for process in processes:
        process.join(WAIT_SECONDS)
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert logs[1].read_text() == "", "the others say nothing"
    one, two = (files_below(tmp_path / name / "features") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert one == two


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"engine": "ray"}, "engine must be local where torchrun spreads the model"),
        ({"objective": "path"}, "objective must be one of gradients where torchrun spreads the model"),
        ({"objective": "matching", "curvature": "ggn"}, "curvature must be empirical-fisher where torchrun spreads"),
    ],
)
def test_what_one_process_must_do_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], told: str
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        select(**options(world, tmp_path / "out"), num_samples=5, **more)


def test_other_commands_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "test"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 2
    assert "torchrun can spread the model of select and features, but not of doctor" in capsys.readouterr().err
