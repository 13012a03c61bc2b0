"""Small records on disk: JSON of bounded size and depth, from regular files alone, sealed by its own sha256."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any

from direct_anneal.io.atomic import replacing
from direct_anneal.io.redaction import redacted

MAX_BYTES = 2**28  # a manifest with a hundred thousand sources has some 10 MB
MAX_DEPTH = 64
SEAL = "seal"  # sha256 of the other members


class RecordError(ValueError):
    """A record is not what it must be; says what is wrong in a clause that follows the file's name."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file to read. Never waits: a FIFO or a device in its place is refused.

    Raises:
        OSError: it is not there, or cannot be read.
        RecordError: it is no regular file, or its name cannot be one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL in its name, or half a surrogate pair
        raise RecordError(f"has a name that no file can have ({error})") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordError("must be a regular file, but is none")
        yield file


def read_content(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the whole of a regular file.

    Raises:
        OSError: it is not there, or cannot be read.
        RecordError: it is no regular file, or larger than `limit` bytes.
    """
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise RecordError(f"must have at most {limit:,} bytes, but has {size:,}")
            return file.read()
    except IsADirectoryError as error:
        raise RecordError("must be a file, but is a directory") from error


def parse(content: bytes | str) -> Any:
    """Parse JSON within our limits: UTF-8, no NaN or infinity, no depth that exhausts a stack.

    Raises:
        RecordError: it is not.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        found = json.loads(text, parse_constant=_no_constant)
    except RecordError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecordError(f"is no JSON ({_brief(error)})") from error
    if _is_deeper(found, MAX_DEPTH):
        raise RecordError(f"is nested deeper than {MAX_DEPTH} levels")
    return found


def read_record(path: Path, types: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """Return a record: a JSON object, whose seal is checked where it has one, and taken off.

    Args:
        types: of members that must be there. A float member may be an int.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        RecordError: it is no such record, or was changed since it was sealed.
    """
    found = parse(read_content(path))
    if not isinstance(found, dict):
        raise RecordError(f"must be a JSON object, but is {_kind(found)}")
    return checked(unsealed(found) if SEAL in found else found, types)


def read_sealed(path: Path, types: Mapping[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """Read a record that must have a seal; see `read_record`."""
    found = parse(read_content(path))
    if not isinstance(found, dict):
        raise RecordError(f"must be a JSON object, but is {_kind(found)}")
    return checked(unsealed(found), types)


def unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """Return a sealed record's content, without its seal.

    Raises:
        RecordError: it has none, or was changed since it was sealed.
    """
    content = {name: value for name, value in found.items() if name != SEAL}
    if SEAL not in found:
        raise RecordError("has no seal: it is damaged, or of an earlier version")
    if found[SEAL] != _seal(content):
        raise RecordError("was changed since it was written")
    return content


def checked(found: dict[str, Any], types: Mapping[str, type | tuple[type, ...]] | None) -> dict[str, Any]:
    """See that members are there and of their types.

    Raises:
        RecordError: they are not.
    """
    for name, kinds in (types or {}).items():
        if name not in found:
            raise RecordError(f"must say {name}, but does not")
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        if float in wanted:
            wanted = (*wanted, int)
        if not isinstance(found[name], wanted) or (isinstance(found[name], bool) and bool not in wanted):
            raise RecordError(f"must say {name} as {wanted[0].__name__}, but says {_kind(found[name])}")
    return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as a reader will find it, without secrets, with its seal as last member."""
    plain: dict[str, Any] = json.loads(json.dumps(redacted(content), ensure_ascii=False, allow_nan=False))
    plain.pop(SEAL, None)
    return {**plain, SEAL: _seal(plain)}


def write_record(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a sealed record whole or not at all, without secrets; returns the content as a reader will find it."""
    whole = sealed(content)
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:  # a file's name that is not UTF-8 has halves of surrogate pairs
        raw = (json.dumps(whole, indent=1) + "\n").encode("ascii")
    with replacing(path) as temporary:
        temporary.write_bytes(raw)
    del whole[SEAL]
    return whole


def _seal(content: Mapping[str, Any]) -> str:
    """Return sha256 of the content as JSON with sorted keys and no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode("ascii")).hexdigest()


def _no_constant(name: str) -> None:
    raise RecordError(f"is no JSON ({name} is no number)")


def _is_deeper(content: Any, limit: int) -> bool:
    level = [content]
    for _ in range(limit):
        level = [
            below
            for above in level
            if isinstance(above, dict | list)
            for below in (above.values() if isinstance(above, dict) else above)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
