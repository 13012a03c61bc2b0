"""Sources that are tokenised once for several jobs, or by workers elsewhere: the bytes of one process."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from data.corpus_samples import ByteTokenizer, prepared, write_lines
from data.web_servers import Quiet, serving
from direct_anneal.data import Fields, SharedCaches, preparation
from direct_anneal.data.corpus import Corpus
from direct_anneal.io import atomic
from direct_anneal.io.lock import taken
from direct_anneal.progress import Silent, showing
from selection.tiny import files_below, start

NUM_FILES = 6


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    for number in range(NUM_FILES):
        lines = [json.dumps({"text": f"text {number} of row {row}", "id": row}).encode() for row in range(5)]
        write_lines(tmp_path / "pool" / f"{number}.jsonl", [*lines, b"not json"])
    return tmp_path / "pool"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files as they are tokenised, here."""
    names: list[str] = []
    real = preparation.tokenized_documents

    def listed(source: Any, *arguments: Any) -> Iterator[Any]:
        names.append(source.path.name)
        return real(source, *arguments)

    monkeypatch.setattr(preparation, "tokenized_documents", listed)
    return names


def shared(pool: Path, number: int, count: int = 3) -> SharedCaches:
    return SharedCaches(directory=pool.parent / "shared", number=number, count=count)


def of_job(pool: Path, number: int, count: int = 3, **options: Any) -> Corpus:
    return prepared(pool.parent / f"job-{number}", pool, shared=shared(pool, number, count), **options)


def the_same_everywhere(pool: Path, *numbers: int) -> bool:
    whole = pool.parent / "whole"
    prepared(whole, pool)
    return all(files_below(pool.parent / f"job-{number}") == files_below(whole) for number in numbers)


def _and_note(pool: Path, number: int, limit: int | None) -> None:
    """Prepare as a job, leave the names of the files that it tokenised; be killed at the limit-th file to be placed."""
    real, replaced = preparation.tokenized_documents, Path.replace

    def noted(source: Any, *arguments: Any) -> Iterator[Any]:
        with (pool.parent / f"read-{number}").open("a") as file:
            file.write(f"{source.path.name}\n")
        return real(source, *arguments)

    def counting(path: Path, target: Any) -> Path:
        nonlocal limit
        if limit is not None:
            limit -= 1
            if limit < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return replaced(path, target)

    preparation.tokenized_documents = noted  # type: ignore[assignment]
    preparation._LOOK_SECONDS = 0.01
    Path.replace = counting  # type: ignore[method-assign,assignment]
    of_job(pool, number)


def noted(pool: Path, number: int) -> list[str]:
    return (pool.parent / f"read-{number}").read_text().split()


def test_each_file_is_tokenised_by_one_job(pool: Path, read: list[str]) -> None:
    first, *others = (of_job(pool, number) for number in (1, 0, 2))
    assert read == ["2.jsonl", "3.jsonl", "4.jsonl", "5.jsonl", "0.jsonl", "1.jsonl"], "each job begins elsewhere"
    assert {corpus.fingerprint for corpus in others} == {first.fingerprint}
    assert the_same_everywhere(pool, 0, 1, 2)


def test_jobs_at_once_divide_the_files(pool: Path) -> None:
    jobs = [start(_and_note, pool, number, None) for number in (0, 2)]
    for job in jobs:
        job.join(600)
        assert job.exitcode == 0
    names = [name for number in (0, 2) if (pool.parent / f"read-{number}").exists() for name in noted(pool, number)]
    assert sorted(names) == [f"{number}.jsonl" for number in range(NUM_FILES)]
    assert the_same_everywhere(pool, 0, 2)


@pytest.mark.parametrize("limit", [0, 2, 3, 5, 7, 8, 11])
def test_another_job_does_what_a_killed_one_had_begun(pool: Path, read: list[str], limit: int) -> None:
    process = start(_and_note, pool, 1, limit)  # eight files to be placed for each: four of its own, four for all
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    of_job(pool, 0)
    finished = noted(pool, 1)[: limit // 8]
    assert sorted(read) == sorted({f"{number}.jsonl" for number in range(NUM_FILES)} - {*finished})
    read.clear()
    of_job(pool, 1)
    assert read == []
    assert the_same_everywhere(pool, 0, 1)


def test_a_job_waits_for_a_file_that_another_reads_and_takes_it_over_if_that_ends(
    pool: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(pool.parent / "job-0", pool)
    locks = [path.with_suffix(".lock") for path in sorted((pool.parent / "job-0").glob("*.tokens"))[:2]]
    (pool.parent / "shared").mkdir()
    notes: list[str] = []

    class Noted(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    read.clear()
    with ExitStack() as held, showing(Noted()):
        for lock in locks:
            assert held.enter_context(taken(pool.parent / "shared" / lock.name))

        def slept(_: float) -> None:
            assert len(read) == NUM_FILES - 2
            held.close()

        monkeypatch.setattr(preparation.time, "sleep", slept)
        of_job(pool, 1)
    assert len(read) == NUM_FILES
    [note] = notes
    assert "waiting for other jobs to read" in note
    assert note.endswith("and 1 other files")
    assert the_same_everywhere(pool, 1)


def test_what_is_damaged_or_of_another_file_is_made_anew(pool: Path, read: list[str]) -> None:
    of_job(pool, 0)
    damaged, lost, *_ = sorted((pool.parent / "shared").glob("*.tokens"))
    damaged.unlink()  # which job 0 has under another name
    damaged.write_bytes(b"nonsense")
    lost.unlink()
    read.clear()
    of_job(pool, 1)
    assert len(read) == 2
    assert the_same_everywhere(pool, 0, 1)
    kept = files_below(pool.parent / "job-0")
    write_lines(pool / "3.jsonl", [b'{"text": "another"}'])
    read.clear()
    of_job(pool, 2)
    assert read == ["3.jsonl"]
    assert files_below(pool.parent / "job-0") == kept, "what a job has taken over stays as it is"
    assert the_same_everywhere(pool, 2)


def test_a_file_system_without_links_and_locks(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(fcntl, "flock", refused)
    for number in range(3):
        of_job(pool, number)
    assert the_same_everywhere(pool, 0, 1, 2)
    with taken(pool.parent / "lock") as first, taken(pool.parent / "lock") as second:
        assert first
        assert second


def test_processes_of_a_job_leave_to_others_what_these_are_about(
    pool: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pickled(work: Any, items: Any, given: Any, workers: int, done: Callable[[Any, Any], object]) -> None:
        assert workers == 2
        of_job(pool, 0)  # in the meantime
        for item in items:
            there, with_what = pickle.loads(pickle.dumps((item, given)))  # noqa: S301
            done(item, work(there, *with_what))

    monkeypatch.setattr(preparation, "each", pickled)
    of_job(pool, 1, workers=2, load_tokenizer=ByteTokenizer)
    assert len(read) == NUM_FILES
    assert the_same_everywhere(pool, 0, 1)


def test_names_of_fields_come_back_as_they_are(pool: Path) -> None:
    secret = "https://user:secret@host/text"
    write_lines(pool / "0.jsonl", [json.dumps({secret: "some text"}).encode()])
    fields = Fields(text=(secret, "text"))
    for number in (0, 1):
        corpus = of_job(pool, number, fields=fields)
        assert corpus.fields_seen == {secret: 1, "text": 25}


class Machine:
    """A `map` in another working directory, with what it is given pickled on its way; some files are not to be seen."""

    def __init__(self, directory: Path, hidden: Callable[[Path], bool] = lambda _: False) -> None:
        self._directory = directory
        self._hidden = hidden

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        there = Path.cwd()
        for item in items:
            function, item = pickle.loads(pickle.dumps((function, item)))  # noqa: S301
            os.chdir(self._directory)
            try:
                aside = atomic.temporary_name(item[0].path)
                if self._hidden(item[0].path):
                    item[0].path.rename(aside)
                result = pickle.loads(pickle.dumps(function(item)))  # noqa: S301
                if aside.exists():
                    aside.rename(item[0].path)
            finally:
                os.chdir(there)
            yield result


def test_workers_elsewhere_give_the_same(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pool.parent)
    (pool.parent / "away").mkdir()
    whole = prepared(Path("whole"), "pool")
    told: list[int] = []
    monkeypatch.setattr(preparation, "_made_here", lambda missing, *_: dict.fromkeys(missing))
    options: dict[str, Any] = {"load_tokenizer": ByteTokenizer, "advance": told.append}
    corpus = prepared(Path("there"), "pool", elsewhere=Machine(pool.parent / "away"), **options)
    assert corpus.index["source"].to_pylist()[0] == "pool/0.jsonl"
    assert corpus.fingerprint == whole.fingerprint
    assert sum(told) == 6 * NUM_FILES
    assert files_below(Path("there")) == files_below(Path("whole"))


def test_workers_elsewhere_fetch_what_lies_at_a_url(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pool.parent)
    (pool.parent / "away").mkdir()
    with serving(functools.partial(Quiet, directory=str(pool))) as port:
        urls = [f"http://127.0.0.1:{port}/{path.name}" for path in pool.iterdir()]
        whole = prepared(Path("whole", "pool"), *urls)
        monkeypatch.setattr(preparation, "_made_here", lambda missing, *_: dict.fromkeys(missing))
        machine = Machine(pool.parent / "away")
        corpus = prepared(Path("there", "pool"), *urls, load_tokenizer=ByteTokenizer, elsewhere=machine)
    assert corpus.fingerprint == whole.fingerprint
    assert files_below(Path("there")) == files_below(Path("whole"))
    assert not list((pool.parent / "away").iterdir())


def test_what_workers_cannot_read_is_read_here(pool: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Noted(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    whole = prepared(pool.parent / "whole", pool)
    read.clear()
    machine = Machine(pool.parent, hidden=lambda path: path.name in ("1.jsonl", "4.jsonl"))
    with showing(Noted()):
        corpus = prepared(pool.parent / "there", pool, elsewhere=machine, load_tokenizer=ByteTokenizer)
    assert sorted(read)[:3] != read  # all but these were read elsewhere, which is here as well
    assert read[-2:] == ["1.jsonl", "4.jsonl"]
    assert notes[0].startswith("2 of 6 files are read here, for workers could not: ")
    assert corpus.fingerprint == whole.fingerprint
    assert files_below(pool.parent / "there") == files_below(pool.parent / "whole")
