"""Whole runs in which only completions are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from direct_anneal.errors import InputError
from selection.pools import chosen, exported_lines, stored
from selection.tiny import byte_tokenizer, documents, evidence, manifest, write_jsonl


def divided(count: int, **options: Any) -> list[dict[str, Any]]:
    """Documents whose first half is given."""
    records = documents(count, **options)
    for record in records:
        half = len(record["text"]) // 2
        record["given"], record["text"] = record["text"][:half], record["text"][half:]
    return records


def test_pool_and_validation_alike(checkpoint: Path, tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", divided(24, seed=2))
    write_jsonl(tmp_path / "validation.jsonl", [*divided(12, seed=3, prefix="v"), {"given": "no answer", "text": ""}])
    half = chosen(checkpoint, tmp_path, tmp_path / "half", pool=str(pool), prompt_field="given")
    joined = [{**record, "text": record["given"] + record["text"]} for record in divided(24, seed=2)]
    write_jsonl(tmp_path / "whole.jsonl", joined)
    whole = chosen(checkpoint, tmp_path, tmp_path / "whole", pool=str(tmp_path / "whole.jsonl"))
    assert evidence(half.out)["num_tokens"].to_pylist() == evidence(whole.out)["num_tokens"].to_pylist()
    assert (evidence(half.out)["loss"].to_numpy() != evidence(whole.out)["loss"].to_numpy()).all()
    assert stored(half.out, "validation").shape[0] == 12
    assert any("nothing to predict after the prompt" in warning for warning in half.manifest["warnings"])
    assert set(exported_lines(half.out / "selected.jsonl")) <= set(pool.read_bytes().splitlines())
    assert manifest(half.out)["config"]["prompt_field"] == "given"


def test_text_and_tokens_are_the_same_document(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    tokenizer, records = byte_tokenizer(), divided(12, seed=2)
    tokenised = [
        {
            "id": record["id"],
            "given": tokenizer(record["given"])["input_ids"],
            "input_ids": tokenizer(record["text"])["input_ids"],
        }
        for record in records
    ]
    losses = []
    for name, pool in (("text", records), ("tokens", tokenised)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", pool)
        losses.append(evidence(chosen(checkpoint, world, tmp_path / name, pool=str(path), prompt_field="given").out))
    assert losses[0]["loss"].to_pylist() == losses[1]["loss"].to_pylist()


def test_a_field_that_no_document_has_is_told(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompt_field must name a field that some record has, but none has 'prompt'"):
        chosen(checkpoint, world, tmp_path / "out", prompt_field="prompt")


@pytest.mark.parametrize("field", ["text", "input_ids"])
def test_a_prompt_is_not_the_text(checkpoint: Path, world: Path, tmp_path: Path, field: str) -> None:
    with pytest.raises(InputError, match="prompt_field must be another field"):
        chosen(checkpoint, world, tmp_path / "out", prompt_field=field)
