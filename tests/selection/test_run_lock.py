"""One run at a time in a directory, whatever becomes of the processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from direct_anneal.compare import compare
from direct_anneal.errors import InputError
from direct_anneal.evaluate import evaluate
from direct_anneal.io.lock import LOCK, MARK, check_free, claim, held
from direct_anneal.io.records import write_record
from direct_anneal.selection import features, select_again
from direct_anneal.train import anneal
from selection.killing import hold
from selection.pools import chosen
from selection.tiny import files_below, start

THIS = rf"in use by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-\d\d-\d\dT"


def test_the_second_is_refused_with_the_first_named_until_that_ends(tmp_path: Path) -> None:
    for _ in range(2):
        with held(tmp_path / "out"):
            before = files_below(tmp_path)
            with pytest.raises(InputError, match=THIS), held(tmp_path / "out"):
                pass
            assert files_below(tmp_path) == before
        assert not list((tmp_path / "out").iterdir())


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = start(hold, tmp_path)
    while not (tmp_path / LOCK).exists() or not (tmp_path / LOCK).stat().st_size:
        time.sleep(0.01)
    with pytest.raises(InputError, match=f"in use by process {process.pid} "), held(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_was_removed_before_it_was_locked_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ends between another's opening and locking: two would hold two files of one name."""
    real, calls = fcntl.flock, 0

    def late(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / LOCK).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with held(tmp_path), pytest.raises(InputError, match=THIS), held(tmp_path):
        pass
    assert calls == 3


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="No locks available.*let no other run use it"), held(tmp_path):
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("left", [[], [LOCK], [LOCK, f"{MARK}.tmp"], [MARK, "anything"]])
def test_what_a_start_leaves_is_no_stranger(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text('{"pool": []}')
    check_free(tmp_path, "pool")
    (tmp_path / MARK).unlink(missing_ok=True)
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="holds other files"):
        check_free(tmp_path, "pool")


@pytest.mark.parametrize(
    ("kept", "wanted", "told"),
    [
        ({"unit": 1, "seed": 1}, {"unit": 1, "seed": 2}, "seed differs"),
        ({"unit": 1, "gone": 1}, {"unit": 1}, "gone differs"),
        ({"unit": 1}, {"unit": 1, "new": 2}, "new differs"),
        ({"gone": 1, "unit": 1, "e": 1}, {"new": 1, "unit": 2, "f": 1}, "unit, new, f and 2 more differ"),
        ({"unit": 1, "a\x1b[2J": 1}, {"unit": 1}, "a␛\\[2J differs"),
    ],
)
def test_another_run_is_told_by_what_differs_on_either_side(
    tmp_path: Path, kept: dict[str, Any], wanted: dict[str, Any], told: str
) -> None:
    write_record(tmp_path / MARK, kept)
    with (
        pytest.raises(InputError, match=rf"holds another run \({told}\)"),
        claim(tmp_path, wanted, "record.json", "unit", overwrite=False),
    ):
        pass


@pytest.fixture(scope="module")
def run(checkpoint: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished select."""
    return chosen(checkpoint, world, tmp_path_factory.mktemp("out") / "run").out


def test_no_command_takes_another_ones_directory_even_to_overwrite(
    checkpoint: Path, world: Path, run: Path, tmp_path: Path
) -> None:
    data, others, before = (
        str(world / "validation.jsonl"),
        "holds another command's: choose another",
        sorted(run.iterdir()),
    )
    given: dict[str, Any] = {"model": str(checkpoint), "data": data, "overwrite": True}
    with pytest.raises(InputError, match=others):
        anneal(**given, out=str(run), epochs=1, learning_rate=1e-3)
    with pytest.raises(InputError, match=others):
        evaluate(**given, out=str(run))
    with pytest.raises(InputError, match="must be new, empty or an earlier comparison"):
        compare(cast(Any, None), run)
    assert sorted(run.iterdir()) == before
    evaluate(**given, out=str(tmp_path / "scores"))
    with pytest.raises(InputError, match=others):
        chosen(checkpoint, world, tmp_path / "scores", overwrite=True)


class TestEveryCommand:
    @pytest.fixture
    def commands(self, checkpoint: Path, world: Path, run: Path, tmp_path: Path) -> dict[str, Callable[[], object]]:
        """Each with tmp_path/"out" for its own."""
        out, data = tmp_path / "out", str(world / "validation.jsonl")
        return {
            "select": lambda: chosen(checkpoint, world, out),
            "features": lambda: features(model=checkpoint, pool=data, validation=data, out=out),
            "solve": lambda: select_again(run, out=out),
            "anneal": lambda: anneal(model=str(checkpoint), data=data, out=str(out), epochs=1, learning_rate=1e-3),
            "evaluate": lambda: evaluate(model=str(checkpoint), data=data, out=str(out)),
            "compare": lambda: compare(cast(Any, None), out),  # the directory comes before the recipe
        }

    @pytest.mark.parametrize("name", ["select", "features", "solve", "anneal", "evaluate", "compare"])
    def test_refuses_a_directory_in_use(
        self, commands: dict[str, Callable[[], object]], tmp_path: Path, name: str
    ) -> None:
        with held(tmp_path / "out"):
            before = files_below(tmp_path)
            with pytest.raises(InputError, match=THIS):
                commands[name]()
            assert files_below(tmp_path) == before
