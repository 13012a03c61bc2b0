"""Prompts in bits per byte: seen, and neither predicted nor counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from direct_anneal.data import Fields, expand, prepare
from direct_anneal.evaluate.bits_per_byte import bits_per_byte
from direct_anneal.model.checkpoint import Checkpoint


@pytest.mark.parametrize("window", [64, 8])
def test_a_prompt_is_seen_and_not_counted(checkpoint: Path, tmp_path: Path, window: int) -> None:
    record = {"id": "a", "domain": "asked", "prompt": "the old sea ", "text": "was cold"}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(record) + "\n")
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
    (score,) = bits_per_byte(model, corpus, window=window, prefix=opened.separator).values()
    tokens, given = torch.tensor(corpus.tokens(0)), int(corpus.num_prompt[0])
    if opened.separator is not None and tokens[0] != opened.separator:
        tokens, given = torch.cat([torch.tensor([opened.separator]), tokens]), given + 1
    assert score.num_tokens == len(tokens) - given
    assert score.num_bytes == len("was cold")
    if window > len(tokens):
        with torch.inference_mode():
            logits = model(input_ids=tokens[None]).logits[0, given - 1 : -1].double()
        nats = torch.nn.functional.cross_entropy(logits, tokens[given:], reduction="sum").item()
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.num_bytes, rel=1e-5)
