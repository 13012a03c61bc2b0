"""Bits per byte against a loop over documents and windows in float64, without batches or padding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from direct_anneal.data import Corpus, Fields, expand
from direct_anneal.errors import InputError
from direct_anneal.evaluate import bits_per_byte, evaluate, macro_mean, read_held_out
from direct_anneal.io.records import read_sealed
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.special_tokens import SpecialTokens
from selection.tiny import CONTEXT, documents, write_jsonl

WINDOW = 16
PREFIX = 0  # "!", which no document here starts with
RECORDS = [*documents(20, seed=4, prefix="e"), {"id": "u", "domain": "prose", "text": "naïve – 日本語 ✓ " * 5}]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("held-out") / "data.jsonl", RECORDS)


@pytest.fixture(scope="module")
def corpus(checkpoint: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("corpus")
    return read_held_out(expand([str(held_out)], "data"), Checkpoint(str(checkpoint)), CONTEXT, directory, Fields())


def special(context: int | None) -> SpecialTokens:
    return SpecialTokens(context=() if context is None else (context,))


@torch.no_grad()
def by_hand(model: torch.nn.Module, tokens: list[int], window: int) -> float:
    """Nats of all tokens but the first, from at most `window` before each: windows side by side, the last one full."""
    nats, predicted = 0.0, 1
    while predicted < len(tokens):
        stop = min(len(tokens), max(predicted, 1) + window if predicted > 1 else window + 1)
        start = max(0, stop - 1 - window)
        log_probabilities = model(input_ids=torch.tensor([tokens[start : stop - 1]])).logits[0].log_softmax(-1)
        for place in range(predicted, stop):
            nats -= float(log_probabilities[place - 1 - start, tokens[place]])
        predicted = stop
    return nats


@pytest.mark.parametrize("prefix", [PREFIX, None])
@pytest.mark.parametrize("window", [WINDOW, CONTEXT])
def test_is_what_a_loop_gives(checkpoint: Path, corpus: Corpus, prefix: int | None, window: int) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    scores = bits_per_byte(model, corpus, window=window, special=special(prefix))
    model = model.double()
    for domain, score in scores.items():
        nats, num_bytes, num_tokens = 0.0, 0, 0
        for i, record in enumerate(RECORDS):
            if record["domain"] == domain:
                tokens = ([] if prefix is None else [prefix]) + corpus.tokens(i).tolist()
                nats += by_hand(model, tokens, window)
                num_bytes += len(record["text"].encode())
                num_tokens += len(tokens) - 1
        assert (score.num_bytes, score.num_tokens) == (num_bytes, num_tokens)
        # Float32 against float64: seven digits, of which sums over some thousand tokens cost one or two.
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_a_prefix_that_the_tokens_bring_is_not_put_twice(checkpoint: Path, corpus: Corpus) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    first = int(corpus.tokens(0)[0])
    brought = sum(int(corpus.tokens(i)[0]) == first for i in range(corpus.num_samples))
    scores = bits_per_byte(model, corpus, window=WINDOW, special=special(first))
    assert sum(score.num_tokens for score in scores.values()) == corpus.num_tokens.sum() - brought


def test_batches_change_nothing_but_rounding(checkpoint: Path, corpus: Corpus) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    one, many = (
        bits_per_byte(model, corpus, window=WINDOW, special=special(PREFIX), batch_tokens=size) for size in (1, 4096)
    )
    for name, score in one.items():
        assert many[name].bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-5)


def test_the_model_is_given_back(checkpoint: Path, corpus: Corpus) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32").train()
    bits_per_byte(model, corpus, window=WINDOW, special=special(PREFIX))
    assert model.training


def test_standard_error_is_that_of_resampled_documents(checkpoint: Path, corpus: Corpus) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    score = bits_per_byte(model, corpus, window=CONTEXT, special=special(PREFIX))["prose"]
    rows = [i for i, record in enumerate(RECORDS) if record["domain"] == "prose"]
    bits = np.array([by_hand(model, [PREFIX, *corpus.tokens(i).tolist()], CONTEXT) for i in rows]) / math.log(2)
    sizes = np.array([len(RECORDS[i]["text"].encode()) for i in rows])
    draws = np.random.default_rng(0).integers(len(rows), size=(4000, len(rows)))
    resampled = bits[draws].sum(1) / sizes[draws].sum(1)
    # First order in 1/√8 documents, and 4,000 resamples: a fifth is what such a small sample allows.
    assert score.standard_error == pytest.approx(resampled.std(), rel=0.2)


def test_the_mean_counts_each_domain_once(checkpoint: Path, corpus: Corpus) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    scores = bits_per_byte(model, corpus, window=CONTEXT, special=special(PREFIX))
    values = [scores[name].bits_per_byte for name in ("code", "prose", "table")]
    assert macro_mean(scores) == pytest.approx(sum(values) / 3)
    assert macro_mean(scores, ["code", "table"]) == pytest.approx((values[0] + values[2]) / 2)


class TestEvaluate:
    def test_writes_what_it_returns_and_keeps_it(self, checkpoint: Path, held_out: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"model": checkpoint, "data": held_out, "out": tmp_path / "out"}
        record = evaluate(**options)
        assert read_sealed(tmp_path / "out" / "evaluation.json") == record
        assert set(record["domains"]) == {"prose", "code", "table"}
        assert evaluate(**options) == json.loads(json.dumps(record))
        with pytest.raises(InputError, match="max_length differ"):
            evaluate(**options, max_length=16)

    def test_tokens_without_text_have_no_bytes(self, checkpoint: Path, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "tokens.jsonl", [{"id": "a", "input_ids": [5, 6, 7]}])
        with pytest.raises(InputError, match="row 0 has tokens alone"):
            evaluate(model=checkpoint, data=path, out=tmp_path / "out")

    @pytest.mark.parametrize(("length", "says"), [(1, "at least 2"), (CONTEXT + 1, "context of 64")])
    def test_windows_that_cannot_be(
        self, checkpoint: Path, held_out: Path, tmp_path: Path, length: int, says: str
    ) -> None:
        with pytest.raises(InputError, match=says):
            evaluate(model=checkpoint, data=held_out, out=tmp_path / "out", max_length=length)
