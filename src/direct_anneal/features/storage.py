"""Storage of a feature store: a directory, or any URL that fsspec opens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.errors import InputError
from direct_anneal.features.rows import StoredRows
from direct_anneal.io.atomic import replacing
from direct_anneal.io.records import RecordError, read_content
from direct_anneal.io.tables import read_parquet

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://|[a-z][a-z0-9+.-]+::", re.IGNORECASE)


class UnreachableError(OSError):
    """A place behind a URL could not be read or written; says which, and what its library says."""


class Place(Protocol):
    """A flat collection of files by name."""

    def names(self) -> list[str]:
        """List all files, in no order; none if the place does not exist yet."""

    def read(self, name: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError where there is none."""

    def blocked(self, name: str) -> bool:
        """True if a directory stands in the place of a file."""

    def rows(self, name: str, shape: tuple[int, int]) -> StoredRows | NDArray[np.float16]:
        """Open the rows of a shard's npy file, lazily where possible."""

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Make or replace a file; killed at any moment, it is there whole or as it was."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def read_table(directory: Path | str, place: Place, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a shard's table.

    Raises:
        InputError: it is none, or unpacks without end, though its digest is right.
    """
    try:
        return read_parquet(place.read(name), columns)
    except RecordError as error:
        raise InputError(
            subject=f"{directory}/{name}", must="be as it was written", got=f"but {error}", do="run select again"
        ) from error


def is_url(place: str) -> bool:
    """True for a place that only fsspec can open, such as "s3://bucket/prefix"."""
    return _URL.match(place) is not None


def place_at(place: Path | str) -> Place:
    """Return the place of that path or URL.

    Raises:
        InputError: it is a URL of a kind that is unknown here, or whose library is not installed.
    """
    text = str(place)
    return Url(text) if is_url(text) else Directory(Path(text.removeprefix("file://")).absolute())


class Directory:
    """A directory, made with the first file that is written: temporary name, fsync, rename."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def read(self, name: str) -> bytes:
        return read_content(self.path / name, limit=2**40)

    def blocked(self, name: str) -> bool:
        return (self.path / name).is_dir()

    def rows(self, name: str, shape: tuple[int, int]) -> StoredRows:
        return StoredRows(self.path / name, shape)

    def write(self, name: str, content: bytes | memoryview) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.path / name) as temporary:
            temporary.write_bytes(content)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


class Url:
    """Below a URL. An object store takes each file in one request, and has it whole or not at all.

    Elsewhere a file may be left half-written: a shard's record is written last, and vouches for what came before it.

    Raises:
        InputError: fsspec does not know this kind of URL, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"a place for features must be a directory, or a URL that fsspec can open, but {url}: {error}"
            ) from error

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        with self._reaching():
            self._files.invalidate_cache(self._root)  # others write here, too
            found: list[str] = []
            with suppress(FileNotFoundError):
                found = self._files.ls(self._root, detail=False)
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def read(self, name: str) -> bytes:
        with self._reaching(missing=FileNotFoundError):
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        return content

    def blocked(self, name: str) -> bool:  # noqa: ARG002
        return False  # an object store knows no directories, and to ask elsewhere is a request for every file

    def rows(self, name: str, shape: tuple[int, int]) -> NDArray[np.float16]:
        whole: NDArray[np.float16] = np.load(BytesIO(self.read(name)), allow_pickle=False)
        return whole.reshape(shape)

    def write(self, name: str, content: bytes | memoryview) -> None:
        with self._reaching():
            self._files.pipe_file(f"{self._root}/{name}", bytes(content))

    def remove(self, name: str) -> None:
        with self._reaching(), suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _reaching(self, missing: type[OSError] = UnreachableError) -> Iterator[None]:
        """Turn each library's own errors for a network or a permission that is lacking into OSError."""
        try:
            yield
        except missing:
            raise
        except Exception as error:
            raise UnreachableError(f"{self.url}: {' '.join(str(error).split()) or type(error).__name__}") from error
