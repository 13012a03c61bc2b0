"""Tables through a process that may die of them: damage in a file ends in one line here, never in a signal."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from direct_anneal.data.formats.streams import check_pointer
from direct_anneal.errors import InputError

BATCH_ROWS = 256
HEADROOM_BYTES = 2 * 2**30  # for one batch, unpacked
SECONDS = 120  # for one batch

_SERVER = Path(__file__).with_name("table_server.py")
_MOST_IDLE = 2

_idle: list[tuple[int, subprocess.Popen[bytes]]] = []  # with the process that started it: a fork must not use it
_lock = threading.Lock()


def read_schema(path: Path, kind: str) -> pa.Schema:
    """Return the schema of a table.

    Args:
        kind: "parquet" or "stream" (Arrow's).

    Raises:
        InputError: the file cannot be read.
    """
    with _asked(path, kind, "schema") as process:
        reader = _stream(process)
        assert list(reader) == []
        return reader.schema


def count_rows(path: Path, kind: str) -> int:
    """Return rows of a table. Arguments and errors as of `read_schema`."""
    with _asked(path, kind, "count") as process:
        return int(_checked(_line(process))["count"])


def read_batches(
    path: Path, kind: str, columns: Collection[str] | None = None, rows: np.ndarray | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (row of the batch's first record, batch), in order; memory: two batches of at most 64 MiB, or a row.

    Args:
        columns: those wanted, where they exist, or what is within them, with dots; all if None.
        rows: sorted row numbers, shape (K,), outside of which the caller needs nothing: whole Parquet row groups
            without one of them are skipped.

    Raises:
        InputError: the file cannot be opened, is damaged, or unpacks to more than is sane.
    """
    with _asked(path, kind, "batches", columns, rows) as process:
        reader = _stream(process)
        while True:
            try:
                batch, told = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            yield int(told["row"]), batch


class _BrokenError(Exception):
    """The process has told of an error, or of nothing more."""


@contextmanager
def _asked(
    path: Path, kind: str, what: str, columns: Collection[str] | None = None, rows: np.ndarray | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that has begun to answer; used again after an answer that was read to its end."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(subject=str(path), must="be readable", got=f"but is not ({error.strerror})") from error
    process, whole = _take(), False
    try:
        _request(process, path, kind, what, columns, rows)
        _checked(_line(process))
        yield process
        if what != "count":
            _checked(_line(process))
        whole = True
    except (_BrokenError, pa.ArrowException, OSError, EOFError) as error:
        whole = isinstance(error, _BrokenError) and process.poll() is None
        check_pointer(path)
        raise InputError(
            subject=str(path),
            must="be readable as " + {"parquet": "Parquet", "stream": "an Arrow stream"}[kind],
            got=f"but is not ({_reason(process, error)})",
            do="write it again or leave it out",
        ) from None
    finally:
        _give_back(process, whole=whole)


def _request(
    process: subprocess.Popen[bytes],
    path: Path,
    kind: str,
    what: str,
    columns: Collection[str] | None,
    rows: np.ndarray | None,
) -> None:
    assert process.stdin is not None
    request = {
        "kind": kind,
        "path": str(path.absolute()),
        "what": what,
        "columns": None if columns is None else sorted(columns),
        "num_rows": None if rows is None else len(rows),
        "batch_rows": BATCH_ROWS,
        "headroom": HEADROOM_BYTES,
        "seconds": SECONDS,
    }
    process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
    if rows is not None:
        process.stdin.write(rows.astype(np.int64, copy=False).tobytes())
    process.stdin.flush()


def _stream(process: subprocess.Popen[bytes]) -> Any:
    """Return the Arrow stream that comes; the pipe stays open after it, for the next answer."""
    return pa.ipc.open_stream(pa.PythonFile(process.stdout, mode="r"))


def _line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise _BrokenError(answer["error"])
    return answer


def _reason(process: subprocess.Popen[bytes], error: Exception) -> str:
    if isinstance(error, _BrokenError):
        return " ".join(str(error).split())[:500]
    code = process.wait()
    if code == -signal.SIGALRM:
        return f"nothing came of it in {SECONDS} s"
    if code < 0:
        return f"reading it ended the reader by signal {signal.Signals(-code).name}"
    return " ".join(str(error).split())[:500] or f"the reader ended with code {code}"


def _take() -> subprocess.Popen[bytes]:
    with _lock:
        while _idle:
            owner, process = _idle.pop()
            if owner == os.getpid() and process.poll() is None:
                return process
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", str(_SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _give_back(process: subprocess.Popen[bytes], *, whole: bool) -> None:
    with _lock:
        if whole and len(_idle) < _MOST_IDLE and process.poll() is None:
            _idle.append((os.getpid(), process))
            return
    _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # the other end may be gone
            if pipe is not None:
                pipe.close()
    process.wait()


@atexit.register
def _end_all() -> None:
    for owner, process in _idle:
        if owner == os.getpid():
            _end(process)
