"""Directories that belong to one run each: held while it lasts, vouched for by a record at its end."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import is_temporary_of
from direct_anneal.io.records import RecordError, read_record, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.io.sanitize import sanitized

try:
    import fcntl
except ImportError:  # not on Windows, where a run says that its directory is not locked
    fcntl = None  # type: ignore[assignment]

MARK = "direct-anneal.json"  # no name that a checkpoint, or anyone else, would use
LOCK = "direct-anneal.lock"

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a directory, made if need be, so that no other process can.

    The lock is the kernel's (flock), and ends with the process, however that ends. The lock file says who holds it. It
    is removed at the end; what a kill leaves of it holds nothing, and the next run takes it over.

    Raises:
        InputError: another process holds it, which is named; or there is a file, or a link, in its place.
    """
    make_directory(out)
    descriptor = _locked(out)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)  # while it is held: see _locked
        os.close(descriptor)


def make_directory(out: Path) -> None:
    """Make an output directory, where it is not there.

    Raises:
        InputError: there is a file in its place.
    """
    require_no_file_at(out)
    out.mkdir(parents=True, exist_ok=True)


def require_no_file_at(out: Path) -> None:
    """See that an output directory can be made.

    Raises:
        InputError: there is a file in its place, or of one above it.
    """
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise InputError(field="out", must="be a directory", got=f"but {blocked} is a file", do="choose another")


@contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Hold a lock file while this lasts, unless another process does; yields whether it is ours. The file stays.

    Where the file system has no locks, all get it.
    """
    descriptor = _opened(path)
    try:
        try:
            _flock(descriptor)
        except BlockingIOError:
            own = False
        else:
            own = True
        yield own
    finally:
        os.close(descriptor)


def check_free(out: Path, own: str) -> None:
    """See that a directory is new, empty or of a run of the same command.

    Args:
        own: an option that this command alone has, by which its runs are known.

    Raises:
        InputError: it holds files, and no run has marked it, or one of another command.
    """
    if (out / MARK).exists():
        if own not in _read(out / MARK):
            raise InputError(
                field="out",
                must="be new, empty or an earlier run",
                got=f"but {out} holds another command's",
                do="choose another",
            )
    elif out.is_dir():
        names = (path.name for path in out.iterdir())
        if any(name != LOCK and not is_temporary_of(name, MARK) for name in names):  # which a start leaves
            raise InputError(
                field="out",
                must="be new, empty or an earlier run",
                got=f"but {out} holds other files",
                do="choose another",
            )


@contextmanager
def claim(
    out: Path, wanted: dict[str, Any], record: str, own: str, *, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Hold `out` as this run's own; an unfinished run may go on in it.

    Args:
        wanted: what the result depends on, as plain JSON values.
        record: name of the file that a run writes last.
        own: as for `check_free`.
        overwrite: take the directory from another run, whose record is removed.

    Yields:
        the record of this very run, where it is finished already.

    Raises:
        InputError: it holds another run and `overwrite` is off, or files that are no run's or another command's, or a
            run is under way.
    """
    check_free(out, own)
    with held(out):
        yield _settled(out, json.loads(json.dumps(redacted(wanted))), record, overwrite)  # as it will be found again


def _settled(out: Path, wanted: dict[str, Any], record: str, overwrite: bool) -> dict[str, Any] | None:
    mark = out / MARK
    if mark.exists():
        found = _read(mark)
        if found == wanted:
            return _read(out / record) if (out / record).exists() else None
        if not overwrite:
            raise InputError(
                f"{out} holds another run ({_differing(found, wanted)}): choose another {option('out')}, or pass "
                f"{option('overwrite')}"
            )
        (out / record).unlink(missing_ok=True)
    write_record(mark, wanted)
    return None


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return a clause on what two runs differ in: up to three members, those first that both have."""
    changed = [name for name in wanted if name in found and found[name] != wanted[name]]
    names = changed + [name for name in (*wanted, *found) if (name in found) != (name in wanted)]
    shown = ", ".join(sanitized(name, 40) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'differ' if len(names) > 1 else 'differs'}"


def _locked(out: Path) -> int:
    """Return the descriptor of a directory's lock file, locked."""
    while True:
        descriptor = _opened(out / LOCK)
        try:
            unlocked = _flock(descriptor)
        except BlockingIOError as error:
            with os.fdopen(descriptor, "rb") as file:
                holder = _described(file.read(1000))
            raise InputError(
                field="out",
                must="have one run at a time",
                got=f"but {out} is in use by {holder}",
                do="wait until that ends, or choose another",
            ) from error
        except OSError:
            os.close(descriptor)
            raise
        if unlocked is not None:
            warnings.warn(f"{out} cannot be locked ({unlocked}): let no other run use it", stacklevel=4)
            return descriptor
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # its last holder removed it between our opening and our locking it


def _opened(path: Path) -> int:
    """Return a lock file's descriptor. A file of ours and no other: nothing is written through a link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_ours(path) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _not_ours(path)
    return descriptor


def _flock(descriptor: int) -> str | None:
    """Lock a file; returns why not, where the file system has no locks.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file system fails.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "not on this system")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error.strerror
    return None


def _not_ours(path: Path) -> InputError:
    return InputError(
        subject=str(path), must="be a lock of our own", got="but it is a link, or no file", do="remove it"
    )


def _described(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {int(holder['pid'])} on {holder['host']!s:.80} since {holder['since']!s:.40}"
    except (ValueError, LookupError, TypeError, RecursionError):  # it has not yet written
        return "another process"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_record(path)
    except RecordError as error:
        raise InputError(
            f"{path} {error}: it is to be a run's own file; choose another {option('out')}, or move the file away"
        ) from error
