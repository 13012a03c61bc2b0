"""Runs that mean harm: links that lead elsewhere, records that are none, and files that wait."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from direct_anneal.cli import main
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.lock import LOCK, MARK
from direct_anneal.io.records import MAX_DEPTH, sealed
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.verify_run import verify_run
from direct_anneal.selection import select_again
from selection.pools import chosen, write_world
from selection.tiny import files_below


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. To be read, not changed."""
    directory = write_world(tmp_path_factory.mktemp("hostile"))
    chosen(checkpoint, directory, directory / "run")
    return directory / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_nothing_is_written_through_links_with_names_that_can_be_foreseen(
    checkpoint: Path, run: Path, copy: Path, tmp_path: Path
) -> None:
    """Every name that a temporary of an earlier version had leads to the user's own file."""
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    for path in [path for path in sorted(copy.rglob("*")) if path.is_file()]:
        link = path.with_name(path.name + ".tmp")
        link.symlink_to(mine)
    chosen(checkpoint, run.parent, copy, overwrite=True, fraction=0.4)
    select_again(copy, out=tmp_path / "out", num_samples=5)
    assert main(["report", str(copy)]) == 0
    assert mine.read_text() == "years of work"
    assert not (copy / MARK).is_symlink()


def test_a_lock_that_is_a_link_is_refused(checkpoint: Path, run: Path, copy: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    for make in (lambda: (copy / LOCK).symlink_to(mine), lambda: os.link(mine, copy / LOCK)):
        make()
        with pytest.raises(InputError, match="must be a lock of our own, but it is a link"):
            chosen(checkpoint, run.parent, copy, overwrite=True)
        assert mine.read_text() == "years of work"
        (copy / LOCK).unlink()


FOLDERS = ["features", "features/pool", "features/pool-path", "corpus", "corpus/pool", "curvature", "path"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_a_link_is_not_written_through(
    checkpoint: Path, run: Path, copy: Path, tmp_path: Path, folder: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (copy / folder).exists():
        shutil.move(copy / folder, elsewhere)
    else:
        elsewhere.mkdir()
    (copy / folder).symlink_to(elsewhere)
    before = files_below(elsewhere)
    with pytest.raises(InputError, match="nothing is written through one"):
        chosen(checkpoint, run.parent, copy, overwrite=True, fraction=0.3)
    assert files_below(elsewhere) == before


def test_a_temporary_is_made_by_whoever_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a name that was guessed right is not opened."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    (tmp_path / f"record.json.{'0' * 16}.tmp").symlink_to(mine)
    with pytest.raises(FileExistsError), replacing(tmp_path / "record.json"):
        pass
    assert mine.read_text() == "years of work"


def test_reading_changes_nothing_and_needs_no_right_to_write(run: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "features" / "pool" / "features-00000.npy.0123456789abcdef.tmp").write_bytes(b"of a run under way")
    before = files_below(copy)
    paths = [copy, *copy.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        select_again(copy, out=tmp_path / "solved", num_samples=4)
        assert main(["export", str(copy), "--to", "jsonl", "--out", str(tmp_path / "exported"), "--quiet"]) == 0
        assert main(["verify", str(copy), "--quiet"]) == 0
        assert files_below(copy) == before
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


DEEP = "[" * 100_000
DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(64)),
    "a depth bomb": lambda path: path.write_text('{"a":' + DEEP),
    "depth that closes": lambda path: path.write_text("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)),
    "a number without end": lambda path: path.write_text("1" * 10_000),
    "NaN": lambda path: path.write_text('{"a": NaN}'),
    "of other kinds": lambda path: path.write_text(json.dumps(sealed({"config": 3, "files": {}, "pool": 1}))),
    "a directory": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_none_is_told_of_in_a_line(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    records = ["direct-anneal.json", "manifest.json", "features/coverage.json", "features/pool/store.json"]
    records += ["features/pool/features-00000.json", "features/pool/batches.json", "selection.parquet"]
    pieces = (path for path in sorted((copy / "corpus" / "pool").glob("*.json")))
    records.append(next(pieces).relative_to(copy).as_posix())
    commands = [["solve", "--out", str(tmp_path / "out")], ["export", "--to", "jsonl", "--out", str(tmp_path / "e")]]
    for number, name in enumerate(records):
        path = copy / name
        kept = path.read_bytes()
        path.unlink()
        DAMAGES[damage](path)
        assert main(["verify", str(copy)]) == 2, name
        command = commands[(number + len(damage)) % 2]
        assert main([command[0], str(copy), *command[1:], "--overwrite", "--quiet"]) in (0, 2), name
        told = capsys.readouterr().err
        assert "Traceback" not in told, name
        assert "this is a bug" not in told, name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        path.write_bytes(kept)
    assert not [finding for finding in verify_run(copy) if not finding.harmless]


def test_a_store_of_a_million_million_rows_takes_no_time(copy: Path) -> None:
    header = copy / "features" / "pool" / "store.json"
    content = json.loads(header.read_text())
    header.write_text(json.dumps(content | {"num_samples": 10**12}))
    with pytest.raises(InputError, match=r"of 976,562,500 shards"):
        RunDir.open(copy).store("pool")
    assert any("shards are there" in finding.wrong for finding in verify_run(copy))


def test_rows_in_another_order_under_a_forged_record(copy: Path) -> None:
    """A Fortran-ordered array has the same numbers, and other rows where they are read from the file."""
    import numpy as np

    from direct_anneal.io.digests import sha256

    path = copy / "features" / "pool" / "features-00000.npy"
    np.save(path, np.asfortranarray(np.load(path)))
    record = path.with_suffix(".json")
    content = json.loads(record.read_text())
    content["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes())}
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match="missing or damaged"):
        RunDir.open(copy).store("pool")


def test_what_is_damaged_is_made_again_by_select(checkpoint: Path, run: Path, copy: Path) -> None:
    """Tokens, index, coverage, shards, results: the same bytes as before."""
    whole = files_below(copy)
    names = ["features/coverage.json", "features/pool/features-00000.npy", "selection.parquet"]
    names += [
        next(name for name in whole if name.startswith("corpus/pool/") and name.endswith(suffix))
        for suffix in (".tokens", ".parquet")
    ]
    for name in names:
        content = bytearray(whole[name])
        content[len(content) // 2] ^= 4
        (copy / name).write_bytes(content)
    chosen(checkpoint, run.parent, copy)
    again = files_below(copy)
    for name in names:
        assert again[name] == whole[name], name
    assert not [finding for finding in verify_run(copy) if not finding.harmless]


@pytest.mark.parametrize("amount", [{"num_samples": 10**12}, {"num_tokens": 10**15}], ids=str)
def test_a_choice_larger_than_the_pool_is_refused_in_a_line(run: Path, tmp_path: Path, amount: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"must .* pool.*, got 1,000,000,000,000") as refused:
        select_again(run, out=tmp_path / "out", **amount)
    assert "\n" not in str(refused.value)
