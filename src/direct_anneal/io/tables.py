"""Parquet of a run, read within bounds: a few bytes of it can stand for any number of rows, and a row for any size."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.io.records import RecordError

ALWAYS_ALLOWED = 2**32  # bytes of memory to unpack a table in
MAX_RATIO = 1000  # to the bytes of the file, beyond that
_SMALL = 2**20  # below, threads cost more than they gain

_lock = threading.Lock()


def read_parquet(
    content: bytes | memoryview | Path, columns: list[str] | None = None, dictionaries: Sequence[str] = ()
) -> pa.Table:
    """Read a table whose bytes are known to be somebody's, not that they mean no harm.

    Args:
        columns: all where left out; in their order here.
        dictionaries: columns of text that are read as dictionaries.

    Raises:
        OSError: the file is not there, or cannot be read.
        RecordError: it is no table, has no such columns, or unpacks to more memory than is sane.
    """
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    most = max(ALWAYS_ALLOWED, MAX_RATIO * size)
    source = content if isinstance(content, Path) else pa.BufferReader(content)
    try:
        # pyarrow.parquet.read_table would do, but for pyarrow.dataset: that takes as long to import as most reads do.
        with _at_most(most), pq.ParquetFile(source, read_dictionary=list(dictionaries)) as file:
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                raise LookupError(f"no column {', '.join(missing)}")
            table = file.read(columns=columns, use_threads=size > _SMALL)
            return table if columns is None else table.select(columns)
    except MemoryError as error:
        raise RecordError(f"must unpack into {most:,} bytes of memory, but does not") from error
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise RecordError(f"is no table that can be read ({' '.join(str(error).split())[:200]})") from error


@contextmanager
def _at_most(num_bytes: int) -> Iterator[None]:
    """Bound the memory that this process may ask for, beyond what it has; one at a time, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        yield
        return
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * os.sysconf("SC_PAGE_SIZE") + num_bytes
        if soft != resource.RLIM_INFINITY and soft <= wanted:
            yield
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
