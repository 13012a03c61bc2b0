"""Prompts in bits per byte: seen, and neither predicted nor counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from direct_anneal.data import Fields, expand, prepare
from direct_anneal.evaluate.bits_per_byte import bits_per_byte
from direct_anneal.model.checkpoint import Checkpoint


def test_an_answer_costs_what_the_whole_costs_beyond_its_prompt(checkpoint: Path, tmp_path: Path) -> None:
    """By the chain rule; tokens are letters, so that those of a prompt begin those of the whole."""
    prompt, answer = "the old sea ", "was cold"
    records = [
        {"id": "a", "domain": "answer", "prompt": prompt, "text": answer},
        {"id": "b", "domain": "whole", "text": prompt + answer},
        {"id": "c", "domain": "prompt", "text": prompt},
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    opened = Checkpoint(str(checkpoint))
    corpus = prepare(
        expand([str(tmp_path / "held_out.jsonl")], "data"),
        role="data",
        fields=Fields(prompt="prompt"),
        load_tokenizer=opened.load_tokenizer,
        tokenizer_fingerprint=opened.tokenizer_fingerprint(),
        vocab_size=opened.vocab_size,
        max_length=64,
        directory=tmp_path / "corpus",
    )
    model = opened.load_model("cpu", "float32")
    scores = bits_per_byte(model, corpus, window=32, special=opened.special_tokens)
    assert scores["answer"].num_bytes == len(answer)
    assert scores["answer"].nats == pytest.approx(scores["whole"].nats - scores["prompt"].nats, rel=1e-4)
