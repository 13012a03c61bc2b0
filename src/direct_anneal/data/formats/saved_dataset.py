"""Directories that `datasets.save_to_disk` wrote: Arrow streams and what the dataset says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from direct_anneal.data.formats.parquet import Table
from direct_anneal.data.formats.record import Choice
from direct_anneal.data.formats.schemas import common_schema, hugging_face_features
from direct_anneal.data.formats.tables import INFO_FILE, STATE_FILE, dataset_files, write_dataset_state
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import flush_to_disk, remove_directory, temporary_directory
from direct_anneal.io.records import parse, read_content


class SavedDataset(Table):
    """One dataset is one source, however many files it has."""

    name = "arrow"
    suffixes = ()  # known by its state file

    @property
    def output(self) -> str:
        return "selected"

    def files(self, path: Path) -> list[Path]:
        # Not every file in the directory: `datasets` drops its caches there when the user maps or filters.
        return [path / STATE_FILE, path / INFO_FILE, *dataset_files(path)]

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Write a directory for `datasets.load_from_disk`."""
        path = directory / self.output
        schema = common_schema([choice.path for choice in choices], self.name)
        with _replacing_dataset(path) as temporary:
            data_path = temporary / "data-00000-of-00001.arrow"
            with pa.OSFile(str(data_path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for portion in self.portions(choices, schema):
                    writer.write_table(portion)
            info = _dataset_info([choice.path for choice in choices], schema)
            write_dataset_state(temporary, [data_path.name], _fingerprint(data_path), info)
            for file_path in temporary.iterdir():
                flush_to_disk(file_path)
        return [path]


def _dataset_info(paths: Sequence[Path], schema: pa.Schema) -> dict[str, Any]:
    """Merge the metadata of datasets as far as its sources agree; the numbers that counted the whole are left out."""
    infos = [_read_info(path / INFO_FILE) for path in paths]
    shared = {
        key: infos[0].get(key, "")
        for key in ("citation", "description", "homepage", "license")
        if all(info.get(key) == infos[0].get(key) for info in infos)
    }
    return {**shared, "features": hugging_face_features(schema) or None}


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = parse(read_content(path)) if path.is_file() else {}
        return info if isinstance(info, dict) else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            subject=str(path), must="be JSON", got=f"but cannot be read ({error})", do="save the dataset again"
        ) from error


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


@contextmanager
def _replacing_dataset(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the name `path`, and the place of a dataset there, on a clean exit."""
    if path.is_symlink() or (path.exists() and not (path / STATE_FILE).is_file()):
        raise InputError(
            subject=str(path),
            must="be free for the selected dataset",
            got="but something else is there",
            do="move it away",
        )
    with temporary_directory(path) as temporary:
        yield temporary
        if path.exists():
            remove_directory(path)
        temporary.rename(path)
