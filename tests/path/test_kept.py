"""Tensors that are kept: whole, or not used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from direct_anneal.io.records import RecordError
from direct_anneal.path.kept import checked_note, damaged_kept, keep_tensors

NOTE = {"mark": "m", "taken": "3"}


def written(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"weight.{size}": torch.randn(size, 5, generator=generator) for size in (1, 4)}
    keep_tensors(path, {**tensors, "half": tensors["weight.4"].bfloat16(), "step": torch.tensor(3.0)}, NOTE)
    return path


def test_any_flipped_bit_is_detected_or_without_effect(tmp_path: Path) -> None:
    path, rng = written(tmp_path / "kept.safetensors"), random.Random(0)
    assert checked_note(path) == NOTE
    assert not list(damaged_kept(tmp_path))
    content, whole, detected = path.read_bytes(), load_file(path), 0
    for _ in range(300):
        place, flipped = rng.randrange(8 * len(content)), bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        if found := list(damaged_kept(tmp_path)):
            assert found[0][0] == path
            assert "\n" not in found[0][1]
            detected += 1
        else:
            assert checked_note(path) == NOTE
            assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(path).items())
    assert detected > 250


def test_what_has_no_digest_or_is_none_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    with pytest.raises(FileNotFoundError):
        checked_note(path)
    save_file({"a": torch.zeros(2)}, str(path), metadata=NOTE)
    with pytest.raises(RecordError, match="was changed since it was written"):
        checked_note(path)
    for content in (b"", b"\xff" * 40, (2**60).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="is no safetensors file"):
            checked_note(path)
