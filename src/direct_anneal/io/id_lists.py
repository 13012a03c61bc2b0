"""Lists of ids in files that people write, one a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not blank, each once, in order. A line feed ends a line, and nothing
    else does: an id may hold any other separator of lines.

    Raises:
        OSError, ValueError: it cannot be read, or is not UTF-8.
    """
    with Path(path).open(encoding="utf-8-sig", newline="\n") as file:
        lines = (line.removesuffix("\n").removesuffix("\r") for line in file)
        return list(dict.fromkeys(line for line in lines if line.strip()))


def places_of(lines: Sequence[str], ids: Iterable[str] | pa.ChunkedArray) -> tuple[NDArray[np.intp], list[str]]:
    """Find what each line names: the id that equals it, else that of the JSON string that it is, else that without the
    spaces around it.

    Returns:
        positions in `ids`, in the order of the lines, each once; and lines that name none.
    """
    text = pa.large_string()  # of any number of ids
    known = ids.cast(text).combine_chunks() if isinstance(ids, pa.ChunkedArray) else pa.array(ids, text)
    found = np.full(len(lines), -1, dtype=np.intp)
    readings: tuple[Callable[[str], str | None], ...] = (lambda line: line, _from_json, str.strip)
    for read in readings:
        left = np.flatnonzero(found < 0).tolist()
        places = pc.index_in(pa.array([read(lines[i]) for i in left], text), known, skip_nulls=True)
        found[left] = places.fill_null(-1).to_numpy(zero_copy_only=False)
    missing = [lines[i] for i in np.flatnonzero(found < 0).tolist()]
    return np.array(list(dict.fromkeys(found[found >= 0].tolist())), dtype=np.intp), missing


def _from_json(line: str) -> str | None:
    try:
        value = json.loads(line) if line.startswith('"') else None
    except ValueError:
        return None
    return value if isinstance(value, str) else None
