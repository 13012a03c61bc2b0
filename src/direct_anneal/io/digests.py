"""Digests of content: one spelling for every place that needs one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from direct_anneal.io.records import opened

_BLOCK = 2**23
WORKERS = min(8, os.cpu_count() or 1)  # threads: hashing and reading release the interpreter's lock


def sha256(content: bytes | memoryview | str) -> str:
    """Return sha256 of content as hex digits; text counts as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a regular file's content. Cost: one read in bounded memory, 1 GB/s and more from memory.

    Raises:
        OSError: it is not there, or cannot be read.
        RecordError: it is no regular file.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Mapping[str, Path]) -> dict[str, str | None]:
    """Return digests by name, computed in threads; None for what cannot be read."""

    def digest(path: Path) -> str | None:
        try:
            return sha256_of_file(path)
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(paths, pool.map(digest, paths.values()), strict=True))


def tree_digests(paths: Mapping[str, Path]) -> dict[str, str | None]:
    """Return digests of files of any size by name; None for what cannot be read.

    Each is the blake2b of the blake2b digests of the file's blocks of 8 MiB, in order, so that one file can be read by
    all cores. Cost: reads every file once, at 0.6 GB/s and more for each core; memory a block for each thread.
    """
    sizes: dict[str, int] = {}
    for name, path in paths.items():
        with suppress(OSError, ValueError), opened(path) as file:
            sizes[name] = os.fstat(file.fileno()).st_size
    blocks = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), _BLOCK)]

    def digest(block: tuple[str, int]) -> bytes | None:
        try:
            with opened(paths[block[0]]) as file:
                file.seek(block[1])
                return hashlib.blake2b(file.read(_BLOCK), digest_size=32).digest()
        except (OSError, ValueError):
            return None

    found: dict[str, list[bytes | None]] = {name: [] for name in sizes}
    with ThreadPoolExecutor(WORKERS) as pool:
        for (name, _), part in zip(blocks, pool.map(digest, blocks), strict=True):
            found[name].append(part)
    return {name: _joined(found[name]) if name in found else None for name in paths}


def _joined(parts: list[bytes | None]) -> str | None:
    whole = [part for part in parts if part is not None]
    return short_hash(b"".join(whole), 32) if len(whole) == len(parts) else None


def short_hash(content: bytes | memoryview | str, size: int = 16, key: str = "") -> str:
    """Return blake2b of content as `2 * size` hex digits, for names and keys; text counts as UTF-8."""
    return short_digest(content, size, key).hex()


def short_digest(content: bytes | memoryview | str, size: int = 16, key: str = "") -> bytes:
    """Return blake2b of content, `size` bytes."""
    raw = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(raw, digest_size=size, key=key.encode()).digest()


def hashed_order(names: Iterable[str], key: str = "") -> NDArray[np.intp]:
    """Return positions sorted by a hash of each name: an order that has nothing to do with that of the names.

    Cost: 1 µs a name; memory 16 bytes a name.
    """
    digests = (short_digest(name, key=key)[:8] for name in names)
    return np.argsort(np.fromiter(map(int.from_bytes, digests), np.uint64), kind="stable")
