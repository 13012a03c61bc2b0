"""Digests of content: one spelling for every place that needs one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from direct_anneal.io.records import opened

WORKERS = min(8, os.cpu_count() or 1)  # threads: hashing and reading release the interpreter's lock


def sha256(content: bytes | memoryview | str) -> str:
    """sha256 of content as hex digits; text counts as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 of a regular file's content. Cost: reads it once, in bounded memory, at 1 GB/s and more from memory.

    Raises:
        OSError: it is not there, or cannot be read.
        RecordError: it is no regular file.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Mapping[str, Path]) -> dict[str, str | None]:
    """Digests by name, computed in threads; None for what cannot be read."""

    def digest(path: Path) -> str | None:
        try:
            return sha256_of_file(path)
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(paths, pool.map(digest, paths.values()), strict=True))


def short_hash(content: bytes | str, size: int = 16, key: str = "") -> str:
    """blake2b of content as `2 * size` hex digits, for names and keys; text counts as UTF-8."""
    return short_digest(content, size, key).hex()


def short_digest(content: bytes | str, size: int = 16, key: str = "") -> bytes:
    """blake2b of content, `size` bytes."""
    raw = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(raw, digest_size=size, key=key.encode()).digest()


def hashed_order(names: list[str], key: Callable[[str], str] = str) -> list[int]:
    """Positions sorted by a hash of each name: an order that has nothing to do with that of the list."""
    digests = [short_digest(key(name)) for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)
