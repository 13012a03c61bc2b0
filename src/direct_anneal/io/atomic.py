"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes the name `path` on a clean exit.

    The content is on the disk before the name is. After an error the temporary is gone and `path` as it was; after
    a kill the temporary may be left, under a name that nothing reads.

    Args:
        path: to be made or replaced.
        mark: put into the temporary's name, where several processes may write the same file at once.
    """
    temporary = path.with_name(path.name + mark + TEMPORARY_SUFFIX)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Forces the file's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
