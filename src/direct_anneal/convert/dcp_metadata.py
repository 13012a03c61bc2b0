"""The contents of a distributed checkpoint (DCP), read without running anything.

The description, `.metadata`, is a pickle of torch's own classes. Here nothing but plain records are made from it, for
the handful of names that such a description consists of; any other name in it is an error.

Source: torch.distributed.checkpoint.metadata and .filesystem, as torch 2.13 writes them; 2.6 writes the same names.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from direct_anneal.errors import InputError
from direct_anneal.model.saved import load_saved

METADATA = ".metadata"

_LARGEST = 2**30  # bytes of a description: a million tensors in a thousand pieces are less
_METADATA_CLASSES = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
_RECORDS = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _METADATA_CLASSES),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


@dataclass(frozen=True)
class Piece:
    """A part of an entry, at a place in a file.

    Attributes:
        offsets, sizes: of the part within the tensor; empty for plain values.
        file: its name, in the checkpoint's directory.
        start, length: bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor, or a plain value.

    Attributes:
        dtype: None for plain values.
        shape: of the whole tensor.
        pieces: these make it up.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    pieces: list[Piece]


class _Record:
    """Record of what the pickle says of an object, kept and not acted upon."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __new__(cls, *_: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments, record.state = (), None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        return self.state[name]

    def __hash__(self) -> int:  # it is a key of the description's dictionaries before its state is there
        return id(self)


# In Python, not the faster one in C: that allocates what a pickle's numbers say before it looks whether it is there.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return _Record
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_entries(directory: Path) -> dict[str, Entry]:
    """Return every entry of the checkpoint by its name.

    Raises:
        InputError: the description is missing, no such description, or names files outside the directory, parts that
            are not there, or a tensor larger than its parts.
    """
    path = directory / METADATA
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(
                subject=str(path),
                must="be the description of a checkpoint",
                got=f"but is larger than {_LARGEST:,} bytes",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            subject=str(directory),
            must="be a directory that torch.distributed.checkpoint wrote",
            got=f"but has no readable {METADATA} ({error.strerror})",
            do="name the one that has",
        ) from error
    try:
        described = _Unpickler(io.BytesIO(raw)).load()
        places = {
            (index["fqn"], index.state.get("offset")): (info["relative_path"], info["offset"], info["length"])
            for index, info in described["storage_data"].items()
            if not info.state.get("transform_descriptors")
        }
        entries = {
            name: _entry(name, entry, places, directory) for name, entry in described["state_dict_metadata"].items()
        }
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            subject=str(path),
            must="describe tensors and nothing else",
            got=f"but {error}, which is never loaded",
            do="this is no checkpoint to trust",
        ) from error
    except Exception as error:  # whatever strange bytes lead to
        raise InputError(
            subject=str(path),
            must="be the description of a checkpoint",
            got=f"but cannot be read ({type(error).__name__})",
            do="save the checkpoint again",
        ) from error
    pieces = [piece for entry in entries.values() for piece in entry.pieces]
    described_bytes = sum(piece.length for piece in pieces)
    if described_bytes > sum((directory / file).stat().st_size for file in {piece.file for piece in pieces}):
        raise InputError(
            subject=str(path), must="give every byte to one entry", got="but gives some to several", do="save it again"
        )
    return entries


def _entry(name: str, entry: _Record, places: dict[tuple[str, Any], tuple[str, int, int]], directory: Path) -> Entry:
    if not entry.state:  # a plain value's
        pieces = [_piece(name, (), (), places[name, None], directory)]
        return Entry(None, (), pieces)
    shape = _numbers(entry["size"])
    parts = [(_numbers(chunk["offsets"]), _numbers(chunk["sizes"])) for chunk in entry["chunks"]]
    pieces = [_piece(name, offsets, sizes, places[name, offsets], directory) for offsets, sizes in parts]
    dtype = entry["properties"].state[0]
    inside = all(
        len(offsets) == len(sizes) == len(shape)
        and all(start + size <= whole for start, size, whole in zip(offsets, sizes, shape, strict=True))
        for offsets, sizes in parts
    )
    covered = sum(_volume(sizes) for _, sizes in parts)
    if not isinstance(dtype, torch.dtype) or not inside or covered != _volume(shape):
        raise InputError(
            subject=str(directory / METADATA), must="describe whole tensors", got=f"but the parts of {name} make none"
        )
    if _volume(shape) * dtype.itemsize > sum(piece.length for piece in pieces):
        raise InputError(
            subject=str(directory),
            must=f"hold the {_volume(shape):,} entries of {name}",
            got="but its files have no room for them",
            do="copy the checkpoint again",
        )
    return Entry(dtype, shape, pieces)


def _piece(
    name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], place: tuple[str, int, int], directory: Path
) -> Piece:
    file, start, length = place
    # Only a bare name lies in the directory for certain; torch writes no other.
    if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file or "\\" in file:
        raise InputError(
            subject=str(directory / METADATA), must="name files beside it", got=f"but {name} is said to be in {file!r}"
        )
    path = directory / file
    num_bytes = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    if num_bytes < 0:
        raise InputError(
            subject=str(path), must="be a file of the checkpoint", got="but is missing or a link", do="copy all of it"
        )
    if not (isinstance(start, int) and isinstance(length, int) and 0 <= start <= start + length <= num_bytes):
        raise InputError(
            subject=str(path), must=f"hold {name} at byte {start} and be longer than {num_bytes:,}", do="copy it again"
        )
    return Piece(offsets, sizes, file, start, length)


def _numbers(sizes: Any) -> tuple[int, ...]:
    numbers = tuple(sizes)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a size is no number")
    return numbers


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for size in shape:
        volume *= size
    return volume


def read_tensor(directory: Path, entry: Entry) -> torch.Tensor:
    """Return the whole tensor. Memory: itself, and its largest part.

    Raises:
        InputError: a part is damaged, or another than described.
    """
    assert entry.dtype is not None
    whole = torch.zeros(entry.shape, dtype=entry.dtype)
    for piece in entry.pieces:
        part = _load(directory, piece)
        if not isinstance(part, torch.Tensor) or tuple(part.shape) != piece.sizes or part.dtype != entry.dtype:
            raise InputError(
                subject=str(directory / piece.file),
                must=f"hold what {METADATA} says",
                got="but does not",
                do="copy it again",
            )
        target = whole
        for dimension, (start, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            target = target.narrow(dimension, start, size)
        target.copy_(part)
    return whole


def read_value(directory: Path, entry: Entry) -> Any:
    """Return a plain value: numbers, texts and collections of them; nothing else is ever loaded."""
    return _load(directory, entry.pieces[0])


def _load(directory: Path, piece: Piece) -> Any:
    path = directory / piece.file
    try:
        with path.open("rb") as file:
            file.seek(piece.start)
            raw = io.BytesIO(file.read(piece.length))
        return load_saved(raw)
    except Exception as error:  # torch's own differ by version, and all mean this
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            subject=str(path),
            must="hold tensors and numbers alone",
            got=f"but cannot be read at byte {piece.start:,} ({reason})",
            do="copy it again",
        ) from error
