"""What a Parquet file's pages unpack to, before any is unpacked.

Each page begins with a header that says how many bytes it unpacks to, and readers ask for that much memory on its word.
The footer's sums need not be true, so the pages are asked. A header is a struct of Thrift's compact protocol.

Source: the specification of Parquet, parquet.thrift; that of Thrift, thrift-compact-protocol.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_UNPACKED_BYTES = 64 * 2**20

# Text is packed to a third, copies of it to a hundredth. What holds one thing over and over goes below a thousandth.
_MAX_RATIO = 1000

_UNPACKED, _PACKED, _NUM_VALUES = 2, 3, 1
_DATA_HEADERS = (5, 8)  # of the two versions of data pages
_VALUE_BYTES = 8  # of one in a list


def rows_at_once(path: Path, metadata: pq.FileMetaData, group: int, columns: Collection[str] | None, most: int) -> int:
    """How many rows of a row group, up to `most`, can be read at once in memory of MAX_UNPACKED_BYTES, at least one.

    A dictionary can stand for any number of copies of its largest value, which is no larger than its page.

    Args:
        columns: those to be read; all if None.

    Raises:
        pa.ArrowInvalid: a page, or all lists of a column, would unpack to more than that and to more than a thousand
            times what they take; or a header is damaged.

    Cost: a few dozen bytes are read for each page.
    """
    row_group, a_row = metadata.row_group(group), 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            if columns is not None and chunk.path_in_schema.split(".")[0] not in columns:
                continue
            nested = metadata.schema.column(number).max_repetition_level > 0
            largest = total = 0
            for unpacked, packed, num_values in _pages(content, chunk):
                size = max(unpacked, num_values * _VALUE_BYTES) if nested else unpacked
                _refuse_bomb(chunk, "a page", size, packed)
                largest, total = max(largest, size), total + size
            if nested:  # all of it may be one row's
                _refuse_bomb(chunk, "lists", total, chunk.total_compressed_size)
                largest = max(largest, total // row_group.num_rows)
            a_row += largest
    return max(1, min(most, MAX_UNPACKED_BYTES // max(a_row, 1)))


def _refuse_bomb(chunk: Any, what: str, unpacked: int, packed: int) -> None:
    if unpacked > MAX_UNPACKED_BYTES and unpacked > _MAX_RATIO * packed:
        raise pa.ArrowInvalid(
            f"{what} of column {chunk.path_in_schema!r} would unpack from {packed:,} to {unpacked:,} bytes"
        )


def _pages(content: mmap.mmap, chunk: Any) -> Iterator[tuple[int, int, int]]:
    """Bytes unpacked, bytes packed and number of values of each page, as the header has them."""
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end, seen = place + chunk.total_compressed_size, 0
    while place < end and seen < chunk.num_values:
        try:
            header, place = _struct(content, place)
            unpacked, packed = header[_UNPACKED], header[_PACKED]
            num_values = max((header[field][_NUM_VALUES] for field in _DATA_HEADERS if field in header), default=0)
        except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise pa.ArrowInvalid(f"the header of a page of column {chunk.path_in_schema!r} is damaged") from error
        if min(unpacked, packed, num_values) < 0:
            raise pa.ArrowInvalid(f"a page of column {chunk.path_in_schema!r} is of negative size")
        yield unpacked, packed, num_values
        place, seen = place + packed, seen + num_values


def _struct(content: mmap.mmap, place: int) -> tuple[dict[int, Any], int]:
    """Its fields by number, and where it ends."""
    fields, number = dict[int, Any](), 0
    while head := content[place]:
        place += 1
        number += head >> 4
        if not head >> 4:
            number, place = _integer(content, place)
        fields[number], place = _value(content, place, head & 15)
    return fields, place + 1


def _value(content: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, place
    if kind == 3:
        return content[place], place + 1
    if kind in (4, 5, 6):
        return _integer(content, place)
    if kind == 8:
        length, place = _varint(content, place)
        return None, place + length
    if kind == 12:
        return _struct(content, place)
    raise ValueError(f"no page's header has a field of kind {kind}")


def _integer(content: mmap.mmap, place: int) -> tuple[int, int]:
    folded, place = _varint(content, place)
    return (folded >> 1) ^ -(folded & 1), place


def _varint(content: mmap.mmap, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("an integer of more than 64 bits")
