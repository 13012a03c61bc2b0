"""Files that torch.save wrote, read as tensors and plain values alone: no code in them runs, and none unpacks."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from direct_anneal.io.records import opened

OPTIMIZER_FILE = "optimizer.pt"  # as transformers' Trainer names an optimizer's state beside a checkpoint

_ARCHIVE = b"PK\x03\x04"  # earlier versions of torch wrote no archive, and packed nothing either


def load_saved(path: Path | BinaryIO) -> Any:
    """Return what torch.save wrote, on the CPU.

    Raises:
        ValueError: the archive is packed, none or damaged, or there is no regular file.
        UnpicklingError: it holds more than tensors and plain values, or what torch never wrote.
        OSError: it cannot be read.
    """
    require_unpacked(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, MemoryError, pickle.UnpicklingError):
        raise
    except Exception as error:  # over strange bytes torch raises almost anything, struct.error too
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"torch cannot read it ({type(error).__name__}: {reason})") from error


def require_unpacked(path: Path | BinaryIO) -> None:
    """See that an archive stores its members as they are, as torch does: packed, they could be any size.

    Raises:
        ValueError: it does not, is damaged, or is no regular file.
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        with opened(path) as file:
            return require_unpacked(file)
    head = path.read(len(_ARCHIVE))
    path.seek(0)
    if head != _ARCHIVE:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, RecursionError) as error:
        raise ValueError(f"it is no whole archive ({error})") from error
    if packed:
        raise ValueError(f"{packed[0][:80]!r} in it is packed, and torch stores tensors as they are")
    path.seek(0)
    return None
