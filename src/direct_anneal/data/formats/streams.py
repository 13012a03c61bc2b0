"""Plain or compressed files as bytes and as lines, in bounded memory, as far as the file is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from direct_anneal.errors import InputError

# A few kilobytes of zstd can unpack to one line of many gigabytes, and JSON becomes Python objects of many times its
# length; no document is 64 MiB long.
MAX_LINE_BYTES = 64 * 2**20

# Text is packed to a third, copies of it to a hundredth. What holds one thing over and over goes below a thousandth.
MAX_RATIO = 1000
_ALWAYS_ALLOWED_BYTES = 256 * 2**20

_CHUNK_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_SKIPPABLE = b"\x2a\x4d\x18"  # bytes 1 to 3 of a zstd frame that holds no data
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LFS_POINTER = b"version https://git-lfs"
_LARGEST_WINDOW = 27  # log2; the most that libzstd unpacks unless told otherwise


class TruncatedError(Exception):
    """A compressed stream ends early or is damaged; what came before it has been yielded."""


def read_lines(path: Path, compression: str | None) -> Iterator[tuple[int, bytes | None]]:
    """Yield (row, line) with row counted from 0 and the line without its newline, None if over MAX_LINE_BYTES.

    Only b"\\n" ends a line: a carriage return before it stays, and U+2028 inside a JSON string is no line end. A byte
    order mark belongs to the file, not to its first line. Memory: one chunk and one line.

    Raises:
        TruncatedError: after the last whole line of a damaged compressed stream.
        InputError: as `chunks`.
    """
    row, size = 0, 0
    parts: list[bytes] = []
    for chunk in chunks(path, compression):
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


def count_lines(path: Path, compression: str | None, max_bytes: int) -> float:
    """Count the lines; past `max_bytes` of the file as it lies on disk, take them to go on as densely."""
    size, lines, packed = path.stat().st_size, 0, 0

    def seen(position: int) -> None:
        nonlocal packed
        packed = position

    with suppress(TruncatedError):  # damage is told of when the whole is read
        for chunk in chunks(path, compression, seen):
            lines += chunk.count(b"\n")
            if packed >= max_bytes:
                return lines * size / packed
    return lines


def chunks(path: Path, compression: str | None, seen: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
    """Yield the unpacked bytes, a mebibyte at a time.

    Args:
        compression: "gzip", "zstd" or None.
        seen: told how many bytes of the file, as it lies on disk, have been taken in.

    Raises:
        TruncatedError: after the last whole byte of a damaged compressed stream.
        InputError: the file is of another kind than its name says, was packed with too large a window, or unpacks to
            more than a thousand times its size.
    """
    check_kind(path, compression)
    position = 0
    with pa.OSFile(str(path)) as raw, _unpacking(raw, compression) as stream:
        try:
            while chunk := stream.read(_CHUNK_BYTES):
                position += len(chunk)
                packed = raw.tell()
                seen(packed)
                if compression and position > max(_ALWAYS_ALLOWED_BYTES, MAX_RATIO * packed):
                    raise InputError(
                        subject=str(path),
                        must=f"unpack to at most {MAX_RATIO:,} times its size",
                        got=f"but {packed:,} bytes of it gave {position:,}",
                        do="leave it out, or unpack it yourself if it is what you want",
                    )
                yield chunk
            return
        except OSError as error:
            # The codec's complaints carry no errno, the operating system's do.
            if compression is None or error.errno is not None:
                raise
            damage = str(error)
    if "too much memory" in damage:
        raise InputError(
            subject=str(path),
            must=f"be packed with a window of at most {2 ** (_LARGEST_WINDOW - 20)} MiB",
            got=f"but its window is {_window(path)} (zstd --long)",
            do=f"pack it again, with zstd --long={_LARGEST_WINDOW} or less",
        )
    yield _salvage(path, compression, position)
    raise TruncatedError(damage)


def check_kind(path: Path, compression: str | None) -> None:
    """Refuse a file whose first bytes belie its name.

    Raises:
        InputError: it is not packed as its name says, packed though its name does not say so, UTF-16, or a pointer of
            Git LFS.
    """
    head = check_pointer(path)
    packed = next((codec for codec, magic in _MAGIC.items() if head.startswith(magic)), None)
    if packed is None and head[1:4] == _SKIPPABLE:
        packed = "zstd"
    if head and packed != compression:
        raise InputError(
            subject=str(path),
            must=f"be packed with {compression}, as its name says" if compression else "be plain, as its name says",
            got=f"but it is {f'packed with {packed}' if packed else f'not: it begins with {head[:8]!r}'}",
            do=f"give it the ending {_ENDINGS[packed]}",
        )
    if head.startswith(_UTF16):
        raise InputError(
            subject=str(path),
            must="be UTF-8",
            got="but is UTF-16",
            do="convert it, for example with iconv -f utf-16 -t utf-8",
        )


def check_pointer(path: Path) -> bytes:
    """Return the first 32 bytes of a file, refused where it is but a pointer of Git LFS.

    Raises:
        InputError: it is.
    """
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(_LFS_POINTER):
        raise InputError(f"{path} is a pointer of Git LFS, not the file itself: fetch it with git lfs pull")
    return head


_ENDINGS = {"gzip": ".gz", "zstd": ".zst", None: "of plain files"}


def _window(path: Path) -> str:
    """Return the window that the first frame of a zstd file asks for."""
    with path.open("rb") as file:
        head = file.read(18)
    if len(head) < 6 or not head.startswith(_MAGIC["zstd"]) or head[4] & 0x20:  # a single segment is its own window
        return "larger"
    base = 2 ** (10 + (head[5] >> 3))
    return f"{(base + base // 8 * (head[5] & 7)) / 2**20:,.0f} MiB"


def _line(row: int, parts: list[bytes], size: int) -> bytes | None:
    if size > MAX_LINE_BYTES:
        return None
    line = b"".join(parts)
    return line.removeprefix(_BYTE_ORDER_MARK) if row == 0 else line


def _salvage(path: Path, compression: str | None, position: int) -> bytes:
    """Read on after `position`: a failed read drops the good bytes that it had already unpacked."""
    rest = bytearray()
    with pa.OSFile(str(path)) as raw, _unpacking(raw, compression) as stream, suppress(OSError):
        while position > 0 and (chunk := stream.read(min(position, _CHUNK_BYTES))):
            position -= len(chunk)
        while byte := stream.read(1):
            rest += byte
    return bytes(rest)


def _unpacking(raw: pa.NativeFile, compression: str | None) -> Any:
    return raw if compression is None else pa.CompressedInputStream(raw, compression)
