"""Lines of a plain or compressed file as bytes, in bounded memory, as far as the file is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

# A few kilobytes of zstd can unpack to one line of many gigabytes, and JSON becomes Python objects of many times its
# length; no document is 64 MiB long.
MAX_LINE_BYTES = 64 * 2**20

_CHUNK_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TruncatedError(Exception):
    """A compressed stream ends early or is damaged; what came before it has been yielded."""


def read_lines(path: Path, compression: str | None) -> Iterator[tuple[int, bytes | None]]:
    """Yields (row, line) with row counted from 0 and the line without its newline, None if over MAX_LINE_BYTES.

    Only b"\\n" ends a line: a carriage return before it stays, and U+2028 inside a JSON string is no line end. A byte
    order mark belongs to the file, not to its first line. Memory: one chunk and one line.

    Raises:
        TruncatedError: after the last whole line of a damaged compressed stream.
    """
    row, size = 0, 0
    parts: list[bytes] = []
    for chunk in _chunks(path, compression):
        for position, part in enumerate(chunk.split(b"\n")):
            if position > 0:
                yield row, _line(row, parts, size)
                row, size, parts = row + 1, 0, []
            size += len(part)
            if size <= MAX_LINE_BYTES:
                parts.append(part)
            else:
                parts.clear()
    if size > 0:
        yield row, _line(row, parts, size)


def _line(row: int, parts: list[bytes], size: int) -> bytes | None:
    if size > MAX_LINE_BYTES:
        return None
    line = b"".join(parts)
    return line.removeprefix(_BYTE_ORDER_MARK) if row == 0 else line


def _chunks(path: Path, compression: str | None) -> Iterator[bytes]:
    position = 0
    with _open(path, compression) as stream:
        try:
            while chunk := stream.read(_CHUNK_BYTES):
                position += len(chunk)
                yield chunk
            return
        except OSError as error:
            # The codec's complaints carry no errno, the operating system's do.
            if compression is None or error.errno is not None:
                raise
            damage = str(error)
    yield _salvage(path, compression, position)
    raise TruncatedError(damage)


def _salvage(path: Path, compression: str, position: int) -> bytes:
    """What can still be read after `position`: a failed read drops the good bytes that it had already unpacked."""
    rest = bytearray()
    with _open(path, compression) as stream, suppress(OSError):
        while position > 0 and (chunk := stream.read(min(position, _CHUNK_BYTES))):
            position -= len(chunk)
        while byte := stream.read(1):
            rest += byte
    return bytes(rest)


def _open(path: Path, compression: str | None) -> Any:
    if compression is None:
        return path.open("rb")
    return pa.CompressedInputStream(pa.OSFile(str(path)), compression)
