"""Directories that belong to one run each: held while it lasts, vouched for by a record at its end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, replacing
from direct_anneal.io.redaction import redacted

MARK = "direct-anneal.json"  # no name that a checkpoint, or anyone else, would use
LOCK = "direct-anneal.lock"

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a directory, made if need be, so that no other process can.

    The lock is the kernel's (flock), and ends with the process, however that ends. The lock file says who holds it. It
    is removed at the end; what a kill leaves of it holds nothing, and the next run takes it over.

    Raises:
        InputError: another process holds it, which is named; or there is a file in its place.
    """
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked is not None:
        raise InputError(f"--out must be a directory, but {blocked} is a file: choose another")
    out.mkdir(parents=True, exist_ok=True)
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
                f"--out must be new, empty or an earlier run, but {out} holds another command's: choose another"
            )
    elif out.is_dir():
        left_by_a_start = {LOCK, MARK + TEMPORARY_SUFFIX}
        if any(path.name not in left_by_a_start for path in out.iterdir()):
            raise InputError(f"--out must be new, empty or an earlier run, but {out} holds other files: choose another")


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
            shown = [name for name in wanted if found.get(name) != wanted[name]][:3]
            raise InputError(
                f"{out} holds another run ({', '.join(shown) or 'of another kind'} differ): choose another --out, or "
                "pass --overwrite"
            )
        (out / record).unlink(missing_ok=True)
    with replacing(mark) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return None


def _locked(out: Path) -> int:
    """The lock file's descriptor, locked."""
    path = out / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with os.fdopen(descriptor, "rb") as file:
                holder = _described(file.read())
            raise InputError(
                f"--out must have one run at a time, but {out} is in use by {holder}: wait until that ends, or choose "
                "another"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            warnings.warn(f"{out} cannot be locked ({error.strerror}): let no other run use it", stacklevel=4)
            return descriptor
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # its last holder removed it between our opening and our locking it


def _described(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, LookupError, TypeError):  # it has not yet written
        return "another process"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be a run's own file, but is no JSON: choose another --out") from error
    return content if isinstance(content, dict) else {}
