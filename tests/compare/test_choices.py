"""Nats of answers behind prompts: against one item at a time in float64, with tokenizers that merge and append."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from direct_anneal.compare.choices import answer_nats, score_choices
from direct_anneal.model.special_tokens import SpecialTokens
from selection.tiny import merging_tokenizer

PAIRS = [("aab", "aa"), ("aab", "ca"), ("", "a"), ("", "bcbc"), ("a", "bc"), ("abcabcabc", "c")]
# Tokens that are the answer's, of "<s> prompt answer": of "aab" + "ca" the merged one is, too.
ANSWERS = [2, 2, 1, 2, 1, 1]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=6, initializer_range=1.0, **sizes)).eval()


def by_hand(model: nn.Module, ids: list[int], answer: int) -> float:
    """The nats of the last so many tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    chances = torch.log_softmax(logits, -1)
    return -sum(float(chances[place - 1, ids[place]]) for place in range(len(ids) - answer, len(ids)))


@pytest.mark.parametrize("special", [False, True])
def test_an_answer_is_what_follows_the_prompt(model: nn.Module, special: bool) -> None:
    tokenizer = merging_tokenizer(special=special)
    tokens = SpecialTokens.of(6, tokenizer, [])
    assert tokens.context == (0,)
    rows = [[0, *tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]] for prompt, answer in PAIRS]
    expected = [by_hand(model, ids, count) for ids, count in zip(rows, ANSWERS, strict=True)]
    found = answer_nats(model, tokenizer, PAIRS, window=32, special=tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    cut = answer_nats(model, tokenizer, PAIRS, window=4, special=tokens)
    expected = [by_hand(model, ids[-4:], count) for ids, count in zip(rows, ANSWERS, strict=True)]
    np.testing.assert_allclose(cut, expected, rtol=1e-5)


def test_the_likeliest_answer_a_byte_is_the_models(model: nn.Module, tmp_path: Path) -> None:
    tokenizer, answers = merging_tokenizer(special=True), ["a", "bca", "cc"]
    special = SpecialTokens.of(6, tokenizer, [])
    nats = answer_nats(model, tokenizer, [("ab", answer) for answer in answers], window=32, special=special)
    best = int(np.argmin([value / len(answer) for value, answer in zip(nats, answers, strict=True)]))
    items = [{"prompt": "ab", "answers": answers, "right": right} for right in (best, (best + 1) % 3)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    score = score_choices(model, tokenizer, tmp_path / "items.jsonl", window=32, special=special)
    assert (score.accuracy, score.chance, score.num_items) == (0.5, pytest.approx(1 / 3), 2)
