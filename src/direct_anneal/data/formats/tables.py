"""Parquet files and Hugging Face datasets saved to disk, as Arrow record batches."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from direct_anneal.data.formats import isolated
from direct_anneal.data.formats.streams import MAX_LINE_BYTES
from direct_anneal.errors import InputError
from direct_anneal.io.records import parse, read_content

STATE_FILE = "state.json"
INFO_FILE = "dataset_info.json"


def dataset_files(directory: Path) -> list[Path]:
    """Return the Arrow stream files of a dataset saved to disk, in the dataset's order.

    Raises:
        InputError: its state file is unreadable, it is seen through an indices mapping, or a data file is missing.
    """
    state_path = directory / STATE_FILE
    try:
        state = parse(read_content(state_path))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        mapped = bool(state.get("_indices_files"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            subject=str(state_path),
            must="list the dataset's Arrow files",
            got=f"but cannot be read ({error!r})",
            do="save the dataset again with save_to_disk",
        ) from error
    if mapped:
        raise InputError(
            f"{directory} holds its rows in another order than its files (an indices mapping): "
            "call flatten_indices() on the dataset and save it again"
        )
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise InputError(
                subject=str(state_path),
                must="list files beside it",
                got=f"but lists {name!r}",
                do="save the dataset again",
            )
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(f"{state_path} lists {file.name}, which is not there: save the dataset again")
    return files


def write_dataset_state(directory: Path, names: Sequence[str], fingerprint: str, info: Mapping[str, Any]) -> None:
    """Make Arrow stream files that lie in the directory a dataset for `datasets.load_from_disk`.

    Args:
        names: of the files, in the dataset's order.
        fingerprint: another for other content; `datasets` finds its caches by it.
        info: what the dataset says of itself.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in ((STATE_FILE, state), (INFO_FILE, info)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_schema(path: Path, format: str) -> pa.Schema | None:
    """Return the schema of a source, None for a saved dataset without a data file (an empty one has none).

    Raises:
        InputError: the file cannot be opened.
    """
    for file, kind in _files(path, format):
        return isolated.read_schema(file, kind)
    return None


def read_batches(
    path: Path, format: str, *, columns: Collection[str] | None = None, rows: np.ndarray | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (row of the batch's first record, batch), in order; memory: a few batches of 64 MiB at most.

    Args:
        columns: those wanted, where they exist; all if None.
        rows: sorted row numbers, shape (K,), outside of which the caller needs nothing: whole Parquet row groups
            without one of them are skipped.

    Raises:
        InputError: a file cannot be opened, is damaged, or unpacks to more than is sane.
    """
    before = stop = 0
    for file, kind in _files(path, format):
        # Of several files only streams come, of which all rows are read.
        for first_row, batch in isolated.read_batches(file, kind, columns, rows):
            stop = before + first_row + batch.num_rows
            yield before + first_row, batch
        before = stop


def count_rows(path: Path, format: str) -> int:
    """Return rows of a table, without reading its values.

    Raises:
        InputError: a file cannot be opened.
    """
    return sum(isolated.count_rows(file, kind) for file, kind in _files(path, format))


def _files(path: Path, format: str) -> list[tuple[Path, str]]:
    if format == "parquet":
        return [(path, "parquet")]
    return [(file, "stream") for file in dataset_files(path)]


def batch_records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Return the rows of a batch as dictionaries; of a row with a text that is not UTF-8, or too long, what is wrong
    with it.

    A list of integers comes as a numpy array: a pool that is tokenised already never becomes Python numbers.
    """
    wrong = f"a text is longer than {MAX_LINE_BYTES:,} bytes" if any(map(_too_long, batch.columns)) else None
    if wrong is None:
        try:
            values = [_values(column) for column in batch.columns]
        except UnicodeDecodeError as error:
            wrong = f"not UTF-8: {error}"
    if wrong is not None:
        if batch.num_rows == 1:
            yield wrong
            return
        for row in range(batch.num_rows):
            yield from batch_records(batch.slice(row, 1))
        return
    names = batch.schema.names
    for row in range(batch.num_rows):
        yield {name: column[row] for name, column in zip(names, values, strict=True)}


def _too_long(column: pa.Array) -> bool:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return is_text and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_LINE_BYTES


def _values(column: pa.Array) -> list[Any]:
    type_ = column.type
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if is_list and pa.types.is_integer(type_.value_type):
        return [scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None for scalar in column]
    values: list[Any] = column.to_pylist()
    return values
