"""Tensors kept between runs of a command: whole or not at all, and covered by a digest that is checked before use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import WORKERS, short_digest, short_hash
from direct_anneal.io.records import RecordError, opened, read_sealed

_DIGEST = "digest"


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> None:
    """Write tensors of the CPU, and some words, as safetensors."""
    digest = _digest(note, dict(zip(tensors, map(_of, tensors.items()), strict=True)))
    with replacing(path) as temporary:
        save_file(dict(tensors), str(temporary), metadata={**note, _DIGEST: digest})
        _sort_words(temporary)


def _sort_words(path: Path) -> None:
    """Put the words in a safetensors file in order: the library writes them in another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(content) == size
        file.seek(8)
        file.write(content)


def checked_note(path: Path) -> dict[str, str]:
    """Return the words beside kept tensors. Cost: reads the whole file, in threads.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it cannot be read.
        RecordError: it is something else, or was changed since it was written.
    """
    with opened(path):  # a regular file
        pass
    try:
        with safe_open(str(path), "pt") as file:
            note: dict[str, str] = dict(file.metadata() or {})
            names = list(file.keys())
            with ThreadPoolExecutor(WORKERS) as pool:
                found = dict(zip(names, pool.map(lambda name: _of((name, file.get_tensor(name))), names), strict=True))
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise RecordError(f"is no safetensors file ({' '.join(str(error).split()):.120})") from error
    if note.pop(_DIGEST, None) != _digest(note, found):
        raise RecordError("was changed since it was written")
    return note


def damaged_kept(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file in a directory of kept tensors and records that is not whole, and what is wrong with it."""
    checks = {".safetensors": checked_note, ".json": read_sealed}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.suffix not in checks:
            continue
        try:
            checks[path.suffix](path)
        except (OSError, RecordError) as error:
            yield path, str(error)


def _of(named: tuple[str, Tensor]) -> bytes:
    name, tensor = named
    kind = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return short_digest(kind, 32) + short_digest(content.data, 32)


def _digest(note: Mapping[str, str], tensors: Mapping[str, bytes]) -> str:
    words = json.dumps(dict(note), sort_keys=True).encode()
    return short_hash(short_digest(words, 32) + b"".join(tensors[name] for name in sorted(tensors)), 32)
