"""A disk that fills up while a run writes: a message, nothing lost, and on it goes once there is room.

tests/test_cli.py does the same with a limit on the size of files, which needs no privileges.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from selection.killing import command_in_small_shards, content
from selection.tiny import command_line, documents, start, write_jsonl


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of a page."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kilobytes", [4, 48, 200])
def test_it_is_told_and_the_run_goes_on_once_there_is_room(
    checkpoint: Path, tmp_path: Path, disk: Path, kilobytes: int
) -> None:
    """From not even the configuration fits to some of the pool's features do."""
    pool = write_jsonl(tmp_path / "pool.jsonl", documents(64, seed=11))
    validation = write_jsonl(tmp_path / "validation.jsonl", documents(16, seed=12, prefix="v"))
    words = ["select", "--model", str(checkpoint), "--pool", str(pool), "--validation", str(validation)]
    words += [
        "--objective",
        "matching",
        "--fraction",
        "0.25",
        "--sketch-size",
        "512",
        "--out",
    ]  # a shard of 8 rows takes 8 kilobytes

    def run(out: Path) -> tuple[int | None, str]:
        process = start(command_in_small_shards, [*words, str(out)], tmp_path / "log")
        process.join()
        return process.exitcode, (tmp_path / "log").read_text()

    def resized(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)

    resized(f"{kilobytes}k")
    out = disk / "out"
    code, told = run(out)
    assert code == 2, told
    assert "Traceback" not in told
    assert f"must have room for {out}, but is full (No space left on device)" in told.splitlines()[-1]
    assert f"to go on: direct-anneal {' '.join([*words, str(out)])}" in told
    assert not list(out.rglob("*.tmp"))
    committed = {path: path.stat().st_mtime_ns for path in out.rglob("features-*.json")}
    assert kilobytes < 200 or len(committed) > 2

    resized("8m")
    code, told = run(out)
    assert code == 0, told
    assert {path: path.stat().st_mtime_ns for path in committed} == committed, "a shard was computed again"
    code, told = run(tmp_path / "elsewhere")
    assert code == 0, told
    assert content(out) == content(tmp_path / "elsewhere")


def test_so_is_one_that_annealing_fills(checkpoint: Path, tmp_path: Path, disk: Path) -> None:
    """From documents to checkpoints, weights and Adam's state: safetensors and torch say it in words of their own."""
    data = write_jsonl(tmp_path / "data.jsonl", documents(64, seed=11))
    words = ["anneal", "--model", str(checkpoint), "--data", str(data), "--learning-rate", "0.01", "--batch-size", "4"]
    words += ["--max-length", "16", "--num-tokens", "512", "--checkpoint-steps", "2", "--keep-optimizer-state", "--out"]

    def run(out: Path) -> tuple[int | None, str]:
        process = start(command_line, [*words, str(out)], tmp_path / "log")
        process.join()
        return process.exitcode, (tmp_path / "log").read_text()

    assert run(tmp_path / "elsewhere")[0] == 0
    whole = sum(path.stat().st_size for path in (tmp_path / "elsewhere").iterdir())
    out = disk / "out"
    for share in (0.1, 0.4, 0.7, 0.9, 1.1, 1.4, 2.0, 4.0):
        subprocess.run(["mount", "-o", f"remount,size={int(share * whole)}", disk], check=True)
        code, told = run(out)
        if code == 0:
            break
        assert code == 2, told
        assert "Traceback" not in told
        assert f"must have room for {out}, but is full (" in told.splitlines()[-1]
    assert share > 0.9, "it wrote less than it wrote elsewhere"
    for name in ("model.safetensors", "optimizer.pt"):
        assert (out / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
