"""Parquet files and Arrow streams read in a process of their own: what damage does to the library stays there.

Run by path, so that it imports nothing of ours. A request is a line of JSON on the standard input, followed by its row
numbers (int64) if it has any:

    {"kind": "parquet"|"stream", "path": ..., "what": "batches"|"schema"|"count", "columns": [...]|null,
     "num_rows": K|null, "batch_rows": n, "headroom": bytes, "seconds": s}

The answer is a line of JSON, `{"ok": true}` or an error; after "ok" an Arrow stream of batches, each with the number of
its first row, and another line: the count, or an error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_PORTION_BYTES = 64 * 2**20
_SMALLER = 16  # a batch that memory does not suffice for is tried again with so many times fewer rows


class RefusedError(Exception):
    """A table that cannot be used, though nothing in it is damaged."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        rows = None
        if request["num_rows"] is not None:
            rows = np.frombuffer(requests.read(8 * request["num_rows"]), dtype=np.int64)
        _limit_memory(request)
        signal.alarm(request["seconds"])
        try:
            _answer(request, rows, answers)
        finally:
            signal.alarm(0)


def _answer(request: dict[str, Any], rows: np.ndarray | None, answers: BinaryIO) -> None:
    done: dict[str, Any] = {}
    try:
        with _open(request) as table:
            if request["what"] == "count":
                done = {"count": table.count()}
                _say(answers, {"ok": True})
            else:
                schema = table.schema()
                names = list(schema.names)  # raises where a name is not UTF-8
                wanted = request["columns"]
                if wanted is not None:
                    names = [name for name in names if any(f"{one}.".startswith(f"{name}.") for one in wanted)]
                    schema = pa.schema([schema.field(name) for name in names], schema.metadata)
                _say(answers, {"ok": True})
                done = _send(table, schema, names if wanted is not None else None, rows, request, answers)
    except BaseException as error:
        done = _described(error)
    _say(answers, done)


def _send(
    table: Any, schema: pa.Schema, names: list[str] | None, rows: Any, request: dict[str, Any], answers: BinaryIO
) -> dict[str, Any]:
    """Write the stream; errors end it, and are told of after it."""
    with pa.ipc.new_stream(answers, schema) as stream:
        if request["what"] == "schema":
            return {}
        try:
            for first_row, batch in table.batches(names, rows, request["batch_rows"]):
                for start, portion in _portions(batch):
                    signal.alarm(0)  # whoever reads may take their time
                    stream.write_batch(portion, {"row": str(first_row + start)})
                    signal.alarm(request["seconds"])
        except (BrokenPipeError, SystemExit):
            raise
        except BaseException as error:
            return _described(error)
    return {}


def _portions(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    num_bytes = batch.nbytes
    step = batch.num_rows if num_bytes <= _PORTION_BYTES else max(1, batch.num_rows * _PORTION_BYTES // num_bytes)
    for start in range(0, batch.num_rows, step):
        portion = batch.slice(start, step)
        if portion.num_rows == 1 and portion.nbytes > 4 * _PORTION_BYTES:
            raise RefusedError(f"one row of it would unpack to {portion.nbytes:,} bytes")
        yield start, portion


class _Parquet:
    def __init__(self, path: str) -> None:
        self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def count(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(
        self, names: list[str] | None, rows: np.ndarray | None, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        first_row = 0
        for group in range(self._file.num_row_groups):
            stop = first_row + self._file.metadata.row_group(group).num_rows
            wanted = rows is None or np.searchsorted(rows, first_row) < np.searchsorted(rows, stop)
            if stop > first_row and wanted:  # Arrow writes a table without rows as a group of none
                yield from self._group(group, names, first_row, batch_rows)
            first_row = stop

    def _group(
        self, group: int, names: list[str] | None, first_row: int, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Return the batches of a row group; in fewer rows at once where a dictionary unfolds to more than memory
        holds.
        """
        done = 0
        while True:
            row = 0
            try:
                for batch in self._file.iter_batches(batch_rows, [group], names, use_threads=False):
                    if row + batch.num_rows > done:
                        yield first_row + max(row, done), batch.slice(max(0, done - row))
                    row += batch.num_rows
                    done = max(done, row)
                return
            except (pa.ArrowMemoryError, MemoryError):
                if batch_rows == 1:
                    raise RefusedError("one row of it would take more memory than a document may") from None
                batch_rows = max(1, batch_rows // _SMALLER)


class _Stream:
    def __init__(self, path: str) -> None:
        self._file = pa.memory_map(path)
        self._reader = pa.ipc.open_stream(self._file)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def schema(self) -> pa.Schema:
        return self._reader.schema

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._reader)

    def batches(
        self, names: list[str] | None, rows: np.ndarray | None, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        first_row = 0
        for batch in self._reader:
            needed = batch if names is None else batch.select(names)
            _validate(needed)
            for start in range(0, batch.num_rows, batch_rows):
                yield first_row + start, needed.slice(start, batch_rows)
            first_row += batch.num_rows


def _validate(batch: pa.RecordBatch) -> None:
    """Check every offset and size before they are followed. A text that is no UTF-8 is bad alone, not its table."""
    for column in batch.columns:
        if pa.types.is_string(column.type):
            column = column.view(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.view(pa.large_binary())
        column.validate(full=True)


def _open(request: dict[str, Any]) -> Any:
    return {"parquet": _Parquet, "stream": _Stream}[request["kind"]](request["path"])


def _limit_memory(request: dict[str, Any]) -> None:
    """Bound what this process may ask for: what it has, the file's map, and the headroom."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = held + Path(request["path"]).stat().st_size + request["headroom"]
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, BrokenPipeError | SystemExit | KeyboardInterrupt):
        raise error
    return {"error": f"{error}" or type(error).__name__}


def _say(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode("ascii") + b"\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever asks; the closed pipe ends this
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)
