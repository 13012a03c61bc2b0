"""CSV and TSV with a header, plain or compressed; a record may hold line breaks within quotes."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from direct_anneal.data.formats import streams
from direct_anneal.data.formats.json_lines import ENDINGS, open_output
from direct_anneal.data.formats.layout import TokenLayout
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing

_DELIMITERS = {"csv": ",", "tsv": "\t"}


class _EndlessError(Exception):
    """A record that does not end."""


class Delimited(Format):
    """The first line names the fields; an empty cell is as good as none."""

    def __init__(self, kind: str, compression: str | None) -> None:
        self.name = f"{kind}{ENDINGS[compression]}"
        self.suffixes = (f".{self.name}",)
        self.compression = compression
        self.delimiter = _DELIMITERS[kind]

    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        for row, record, _ in self._rows(path, self._header(path)):
            yield row, record

    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        """Count records; a line break within quotes counts as a record."""
        return max(0.0, streams.count_lines(path, self.compression, max_bytes) - 1)

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Copy records byte for byte below one header; written anew where the sources' headers differ."""
        path = directory / self.output
        headers = [self._header(choice.path) for choice in choices]
        joined = list(dict.fromkeys(name for header in headers for name in header))
        with replacing(path) as temporary, open_output(temporary, self.compression) as output:
            output.write(self._line(joined))
            for choice, header in zip(choices, headers, strict=True):
                wanted = set(choice.rows.tolist())
                for row, record, raw in self._rows(choice.path, header) if wanted else ():
                    if row not in wanted or isinstance(record, BadRecord):
                        continue
                    if header == joined:
                        output.write(raw if raw.endswith(b"\n") else raw + b"\n")
                    else:
                        output.write(self._line([record.get(name) or "" for name in joined]))
                choice.check_unchanged()
        return [path]

    def _header(self, path: Path) -> list[str]:
        rows = self._rows(path, None)
        first = next(rows, None)
        if first is None:
            return []
        names = first[1]
        if isinstance(names, BadRecord) or len({*names.values()}) < len(names) or not all(names.values()):
            told = names.reason if isinstance(names, BadRecord) else ", ".join(map(repr, names.values()))
            raise InputError(
                subject=str(path),
                must="begin with a line that names every field once",
                got=f"but begins with {told[:200]}",
                do="put a header there, or convert it to JSON Lines",
            )
        return list(names.values())

    def _rows(self, path: Path, header: list[str] | None) -> Iterator[tuple[int, Record, bytes]]:
        """Yield (row, record, its bytes); without `header` the lines from the first, with cells by number."""
        taken = bytearray()
        csv.field_size_limit(streams.MAX_LINE_BYTES)
        cells = csv.reader(self._lines(path, taken), delimiter=self.delimiter, strict=True)
        row, skip = 0, header is not None
        while True:
            taken.clear()
            try:
                found = next(cells, None)
            except (_EndlessError, streams.TruncatedError) as error:
                yield row, BadRecord(f"the rest of the file is lost: {error}", kind="truncated"), b""
                return
            except csv.Error as error:
                yield row, BadRecord(str(error)), b""
                row += 1
                continue
            if found is None:
                return
            if skip or not found:
                skip = skip and not found  # blank lines before the header
                continue
            raw = bytes(taken)
            if any("\udc80" <= mark <= "\udcff" for cell in found for mark in cell if not cell.isascii()):
                yield row, BadRecord("not UTF-8"), raw
            elif header is not None and len(found) != len(header):
                yield row, BadRecord(f"{len(found)} cells, and the header has {len(header)}"), raw
            else:
                named = zip(header or map(str, range(len(found))), found, strict=True)
                yield row, {name: cell or None for name, cell in named}, raw
            row += 1

    def _lines(self, path: Path, taken: bytearray) -> Iterator[str]:
        for _, line in streams.read_lines(path, self.compression):
            if line is None or len(taken) + len(line) > streams.MAX_LINE_BYTES:
                # Nobody knows where an endless quote was meant to end, or how much it has swallowed.
                raise _EndlessError(f"a record is longer than {streams.MAX_LINE_BYTES} bytes")
            taken += line + b"\n"
            yield (line + b"\n").decode("utf-8", "surrogateescape")

    def _line(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerow(cells)
        return text.getvalue().encode("utf-8")
