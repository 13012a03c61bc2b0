"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"

# Earlier versions wrote temporaries without the random part.
_RANDOM = r"(?:\.[0-9a-f]{16})?"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the name `path` on a clean exit.

    The temporary is a new file under a name that nobody can foresee, so that no link that was put in its place leads
    the content elsewhere. The content is on the disk before the name is. After an error the temporary is gone and
    `path` as it was; after a kill the temporary may be left, under a name that nothing reads.
    """
    temporary = temporary_name(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def linked(source: Path, target: Path) -> None:
    """Give a file another name where the file system can, else copy it; `target` is whole or not there.

    Raises:
        OSError: there is no such file, or the disk is full.
    """
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, temporary)


def temporary_name(path: Path) -> Path:
    """Name a temporary beside `path` that does not exist yet and cannot be foreseen; make it exclusively (O_EXCL,
    mkdir)."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def is_temporary_of(name: str, target: str) -> bool:
    """True if a file's name is that of a temporary for `target`."""
    return re.fullmatch(re.escape(target) + _RANDOM + re.escape(TEMPORARY_SUFFIX), name) is not None


def leftovers(path: Path) -> list[Path]:
    """Return temporaries for `path` that a kill left beside it."""
    if not path.parent.is_dir():
        return []
    return sorted(other for other in path.parent.iterdir() if is_temporary_of(other.name, path.name))


def remove_leftovers(path: Path) -> None:
    """Remove them. For who holds the directory alone; nothing is removed through a link."""
    for left in leftovers(path):
        remove(left)


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, or a file; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Remove a directory; its name is free in one step, so that a kill leaves a temporary and never half of it."""
    aside = temporary_name(path)
    path.rename(aside)
    shutil.rmtree(aside)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Yield a new directory beside `path` under a name that nobody can foresee; what is left of it goes in the end."""
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Force the file's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
