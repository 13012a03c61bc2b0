"""Digests of files against hashlib, block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from direct_anneal.io import digests


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 65])
def test_a_tree_is_what_its_formula_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(digests, "_BLOCK", 8)
    path, content = tmp_path / "file", bytes(range(size))
    path.write_bytes(content)
    blocks = [content[start : start + 8] for start in range(0, max(size, 1), 8)]
    parts = b"".join(hashlib.blake2b(block, digest_size=32).digest() for block in blocks)
    wanted = hashlib.blake2b(parts, digest_size=32).hexdigest()
    assert digests.tree_digests({"a": path, "b": tmp_path / "none", "c": tmp_path}) == {
        "a": wanted,
        "b": None,
        "c": None,
    }
    assert digests.sha256_of_files({"a": path})["a"] == hashlib.sha256(content).hexdigest()
