"""The chosen documents, copied from their sources without change, one output for each format of the pool."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.data.corpus import Corpus
from direct_anneal.data.formats import TOKENISED, token_writer
from direct_anneal.data.lines import TruncatedError, read_lines
from direct_anneal.data.schemas import common_schema, hugging_face_features
from direct_anneal.data.sources import Source, State
from direct_anneal.data.tables import INFO_FILE, STATE_FILE, read_batches, write_dataset_state
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, flush_to_disk, replacing

_NAMES = {
    "jsonl": "selected.jsonl",
    "jsonl.gz": "selected.jsonl.gz",
    "jsonl.zst": "selected.jsonl.zst",
    "parquet": "selected.parquet",
    "arrow": "selected",
    **{format: f"selected.{format}" for format in TOKENISED.values()},
}
_TABULAR = ("parquet", "arrow")

# Rows reach a table in portions of this many bytes: a row group for every few chosen rows would make slow files.
_PORTION_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Choice:
    """What to copy from one source: rows (K_s,) int64, sorted; state is the source's when they were chosen."""

    source: Source
    state: State
    rows: np.ndarray

    def check_unchanged(self) -> None:
        if self.source.state() != self.state:
            raise InputError(
                f"{self.source} must be as it was when it was read, but changed since: "
                "put it back, or run the selection again"
            )


def check_writable(sources: Sequence[Source]) -> None:
    """Makes sure that `write_selected` can bring the columns of these sources together. Cost: opens each file.

    Raises:
        InputError: two Parquet files, or two saved datasets, give one column different types.
    """
    for format in _TABULAR:
        common_schema([source for source in sources if source.format == format])


def write_selected(corpus: Corpus, selected: np.ndarray, out_dir: Path) -> list[Path]:
    """Copies the selected documents, in source order, into one output for each format in the corpus.

    JSON lines are copied byte for byte under the same compression (`selected.jsonl`, `.jsonl.gz`, `.jsonl.zst`),
    tables with all columns and types: `selected.parquet`, and `selected/` for `datasets.load_from_disk`. Where
    sources lack a column that others have, it is null. Tokens go into `selected.npy`, `.bin` or `.ds` and what belongs
    beside these, in the type that the format's trainer takes for the vocabulary. The same selection gives the same
    bytes. An output of an earlier call is replaced.

    Args:
        selected: (N,) bool.
        out_dir: made if need be.

    Returns:
        The outputs, every file.

    Raises:
        ValueError: `selected` is not (N,) bool.
        InputError: a source changed since the corpus was prepared; columns do not go together; `selected/` exists
            and is no dataset.
        OSError: the disk is full, or fails; an output is whole or not there.

    Cost: one more read of the sources, of Parquet only the row groups that hold something selected.
    """
    if selected.shape != (corpus.num_samples,) or selected.dtype != np.bool_:
        raise ValueError(
            f"selected must be ({corpus.num_samples},) bool, one for each sample, but is {selected.shape} "
            f"{selected.dtype}: pass the mask over the whole corpus"
        )
    rows = corpus.index["row"].to_numpy()
    choices = []
    for source, state, start, stop in zip(
        corpus.sources, corpus.states, corpus.bounds[:-1], corpus.bounds[1:], strict=True
    ):
        choice = _Choice(source, state, rows[start:stop][selected[start:stop]])
        choice.check_unchanged()
        choices.append(choice)
    check_writable(corpus.sources)
    out_dir.mkdir(parents=True, exist_ok=True)
    outputs = []
    for format, name in _NAMES.items():
        alike = [choice for choice in choices if choice.source.format == format]
        if alike and format in TOKENISED.values():
            outputs += _write_tokens(corpus, selected, format, out_dir)
        elif alike:
            outputs.append(out_dir / name)
            _write(alike, format, outputs[-1])
    return outputs


def _write(choices: Sequence[_Choice], format: str, path: Path) -> None:
    if format == "parquet":
        _write_parquet(choices, path)
    elif format == "arrow":
        _write_dataset(choices, path)
    else:
        _write_lines(choices, path)


def _write_tokens(corpus: Corpus, selected: np.ndarray, format: str, out_dir: Path) -> list[Path]:
    is_ours = np.repeat([source.format == format for source in corpus.sources], np.diff(corpus.bounds))
    temporary = out_dir / f"{_NAMES[format]}{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        writer = token_writer(format, temporary / "selected", corpus.vocab_size)
        for position in np.flatnonzero(is_ours & selected).tolist():
            writer.add(corpus.tokens(position))
        writer.close()
        for path in writer.paths:
            flush_to_disk(path)
        return [path.replace(out_dir / path.name) for path in reversed(writer.paths)]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_lines(choices: Sequence[_Choice], path: Path) -> None:
    with replacing(path) as temporary, _open_output(temporary, choices[0].source.compression) as output:
        for choice in choices:
            for line in _chosen_lines(choice):
                output.write(line + b"\n")
            choice.check_unchanged()


def _chosen_lines(choice: _Choice) -> Iterator[bytes]:
    wanted = iter(choice.rows.tolist())
    next_row = next(wanted, None)
    # The end of a damaged file is known since the corpus was prepared; nothing after it can have been chosen.
    with suppress(TruncatedError):
        for row, line in read_lines(choice.source.path, choice.source.compression):
            if next_row is None:
                return
            if row == next_row and line is not None:
                yield line
                next_row = next(wanted, None)


def _write_parquet(choices: Sequence[_Choice], path: Path) -> None:
    schema = common_schema([choice.source for choice in choices])
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for portion in _portions(_chosen_batches(choices, schema)):
            writer.write_table(portion)


def _write_dataset(choices: Sequence[_Choice], path: Path) -> None:
    sources = [choice.source for choice in choices]
    schema = common_schema(sources)
    with _replacing_dataset(path) as temporary:
        data_path = temporary / "data-00000-of-00001.arrow"
        with pa.OSFile(str(data_path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for portion in _portions(_chosen_batches(choices, schema)):
                writer.write_table(portion)
        write_dataset_state(temporary, [data_path.name], _fingerprint(data_path), _dataset_info(sources, schema))
        for file_path in temporary.iterdir():
            flush_to_disk(file_path)


def _chosen_batches(choices: Sequence[_Choice], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for choice in choices:
        rows = choice.rows
        for first_row, batch in read_batches(choice.source.path, choice.source.format, rows=rows):
            start, stop = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
            if start < stop:
                yield _conformed(batch.take(pa.array(rows[start:stop] - first_row)), schema)
        choice.check_unchanged()


def _portions(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in batches:
        held.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= _PORTION_BYTES:
            yield pa.Table.from_batches(held).combine_chunks()
            held, num_bytes = [], 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    names = batch.schema.names
    arrays = [
        batch.column(field.name).cast(field.type) if field.name in names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _dataset_info(sources: Sequence[Source], schema: pa.Schema) -> dict[str, Any]:
    """What a dataset says of itself, as far as its sources agree; the numbers that counted the whole are left out."""
    infos = [json.loads((source.path / INFO_FILE).read_text(encoding="utf-8")) for source in sources]
    shared = {
        key: infos[0].get(key, "")
        for key in ("citation", "description", "homepage", "license")
        if all(info.get(key) == infos[0].get(key) for info in infos)
    }
    return {**shared, "features": hugging_face_features(schema) or None}


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


@contextmanager
def _replacing_dataset(path: Path) -> Iterator[Path]:
    """Yields a temporary directory that takes the name `path`, and the place of a dataset there, on a clean exit."""
    if path.exists() and not (path / STATE_FILE).is_file():
        raise InputError(f"{path} must be free for the selected dataset, but something else is there: move it away")
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _open_output(path: Path, compression: str | None) -> Iterator[Any]:
    with path.open("wb") as file:
        if compression is None:
            yield file
            return
        with pa.CompressedOutputStream(file, compression) as output:
            yield output
