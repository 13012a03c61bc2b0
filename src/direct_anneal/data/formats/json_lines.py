"""JSON Lines, plain or compressed: one object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from direct_anneal.data.formats import streams
from direct_anneal.data.formats.layout import TokenLayout
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing

_PEEK_BYTES = 2**16

ENDINGS: Mapping[str | None, str] = {None: "", "gzip": ".gz", "zstd": ".zst"}


class JsonLines(Format):
    """One object a line; `.json` and its compressed kin, too, where that is what they hold (C4, Dolma)."""

    def __init__(self, compression: str | None) -> None:
        ending = ENDINGS[compression]
        self.name = f"jsonl{ending}"
        self.suffixes = tuple(f"{suffix}{ending}" for suffix in (".jsonl", ".ndjson", ".json"))
        self.compression = compression

    def recognises(self, path: Path) -> bool:
        if not path.name.lower().endswith(self.suffixes[-1]):
            return True
        head = peek(path, self.compression)
        first, newline, _ = head.partition(b"\n")
        return not head or (not newline and len(head) >= _PEEK_BYTES and head[:1] == b"{") or _is_object(first)

    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        next_row = 0
        try:
            for row, line in streams.read_lines(path, self.compression):
                next_row = row + 1
                if line is None:
                    yield row, BadRecord(f"the line is longer than {streams.MAX_LINE_BYTES} bytes")
                elif line.strip():
                    yield row, parsed(line)
        except streams.TruncatedError as error:
            yield next_row, BadRecord(f"the rest of the file is lost: {error}", kind="truncated")

    def records_at(
        self, path: Path, layout: TokenLayout | None, rows: np.ndarray, columns: Collection[str]
    ) -> Iterator[tuple[int, Record]]:
        """Read the records at these rows; no other line is parsed."""
        for row, line in chosen_lines(path, self.compression, rows):
            yield row, parsed(line)

    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        return streams.count_lines(path, self.compression, max_bytes)

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Copy lines byte for byte, each with a newline, under the same compression."""
        path = directory / self.output
        with replacing(path) as temporary, open_output(temporary, self.compression) as output:
            for choice in choices:
                for _, line in chosen_lines(choice.path, self.compression, choice.rows):
                    output.write(line + b"\n")
                choice.check_unchanged()
        return [path]


def chosen_lines(path: Path, compression: str | None, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield (row, line) at these rows, shape (K,), sorted."""
    wanted = iter(rows.tolist())
    next_row = next(wanted, None)
    # The end of a damaged file is known since the corpus was prepared; nothing after it can have been chosen.
    with suppress(streams.TruncatedError):
        for row, line in streams.read_lines(path, compression):
            if next_row is None:
                return
            if row == next_row and line is not None:
                yield row, line
                next_row = next(wanted, None)


def parsed(line: bytes | str) -> Record:
    """Return the object that a line or an element of an array holds."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
        record = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # JSON can escape half a surrogate pair, which no tokenizer, file or table can hold.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadRecord("a string holds half a surrogate pair")
    except (ValueError, RecursionError) as error:
        return BadRecord(str(error))
    return record if isinstance(record, dict) else BadRecord(f"not a JSON object but {type(record).__name__}")


def peek(path: Path, compression: str | None) -> bytes:
    """Return the beginning of a file, without white space and byte order mark; empty where it cannot be read."""
    with suppress(streams.TruncatedError, InputError, OSError):
        for chunk in streams.chunks(path, compression):
            return chunk[:_PEEK_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return b""


@contextmanager
def open_output(path: Path, compression: str | None) -> Iterator[Any]:
    """Return a stream into a new file, compressed or not; gzip with no name and no time in it."""
    with path.open("wb") as file:
        if compression is None:
            yield file
            return
        with pa.CompressedOutputStream(file, compression) as output:
            yield output


def _is_object(line: bytes) -> bool:
    return isinstance(parsed(line), Mapping)
