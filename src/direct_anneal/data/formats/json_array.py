"""One JSON array of objects, plain or compressed."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from direct_anneal.data.formats import streams
from direct_anneal.data.formats.json_lines import ENDINGS, open_output, parsed, peek
from direct_anneal.data.formats.layout import TokenLayout
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.io.atomic import replacing

_WHITE = " \t\r\n"


class JsonArray(Format):
    """`.json` that begins with a bracket; it is read element by element, and never held whole."""

    def __init__(self, compression: str | None) -> None:
        self.name = f"json{ENDINGS[compression]}"
        self.suffixes = (f".json{ENDINGS[compression]}",)
        self.compression = compression

    def recognises(self, path: Path) -> bool:
        head = peek(path, self.compression)
        return head[:1] == b"[" and head[1:].lstrip()[:1] in (b"{", b"]", b"")

    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        for row, element in _elements(path, self.compression):
            yield row, parsed(element) if isinstance(element, str) else element

    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        size, number, unpacked = path.stat().st_size, 0, 0
        for _, element in _elements(path, self.compression):
            number += isinstance(element, str)
            unpacked += len(element) if isinstance(element, str) else 0
            if self.compression is None and unpacked >= max_bytes:
                return number * size / unpacked
        return number

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Copy elements byte for byte, one a line, into one array."""
        path, before = directory / self.output, b"["
        with replacing(path) as temporary, open_output(temporary, self.compression) as output:
            for choice in choices:
                wanted = set(choice.rows.tolist())
                for row, element in _elements(choice.path, self.compression) if wanted else ():
                    if row in wanted and isinstance(element, str):
                        output.write(before + b"\n" + element.encode("utf-8"))
                        before = b","
                choice.check_unchanged()
            output.write((b"[" if before == b"[" else b"") + b"\n]\n")
        return [path]


def _elements(path: Path, compression: str | None) -> Iterator[tuple[int, str | BadRecord]]:
    """Yield (row, the text of an element); a BadRecord last where the rest cannot be read.

    Memory: an element of at most MAX_LINE_BYTES characters, and as much again. An element that is no JSON ends it:
    nobody could tell where the next begins.
    """
    decode, scan = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder().raw_decode
    source, held, place, row = streams.chunks(path, compression), "", 0, 0
    expected = "["  # then an element or the end; then a comma or the end; nothing after that
    at_end, wanted = False, 1
    while True:
        while place < len(held) and held[place] in _WHITE:
            place += 1
        problem = ""
        if place < len(held):
            found = held[place]
            if expected == "[" and found == "[":
                expected, place = "first", place + 1
                continue
            if expected in ("first", ",") and found == "]":
                expected, place = "nothing", place + 1
                continue
            if expected == "," and found == ",":
                expected, place = "element", place + 1
                continue
            if expected in ("first", "element"):
                try:
                    _, stop = scan(held, place)
                    if stop - place > streams.MAX_LINE_BYTES:
                        yield row, BadRecord(f"the element is longer than {streams.MAX_LINE_BYTES} bytes")
                    else:
                        yield row, held[place:stop]
                    expected, place, row, wanted = ",", stop, row + 1, 1
                    continue
                except (ValueError, RecursionError) as error:
                    problem = str(error)
                    if len(held) - place > streams.MAX_LINE_BYTES or isinstance(error, RecursionError):
                        at_end = True
            else:
                problem, at_end = f"{found!r} stands where {expected} should", True
        if at_end:
            if problem or expected != "nothing":
                reason = problem or "the array does not end"
                yield row, BadRecord(f"the rest of the file is lost: {reason}", kind="truncated")
            return
        fresh: list[str] = [held[place:]]
        try:
            # As much again each time, so that a long element is not scanned from its beginning for every chunk.
            for _ in range(wanted):
                chunk = next(source, None)
                fresh.append(decode.decode(chunk or b"", final=chunk is None))
                at_end = chunk is None
                if at_end:
                    break
        except (streams.TruncatedError, UnicodeDecodeError) as error:
            yield row, BadRecord(f"the rest of the file is lost: {error}", kind="truncated")
            return
        held, place, wanted = "".join(fresh), 0, 2 * wanted
