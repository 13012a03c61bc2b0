from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from direct_anneal.demo import TARGET, DemoCorpus, demo_model_path


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = demo_model_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A model this small only loses by sharing its work among threads, a hundredfold where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def losses(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], corpus: DemoCorpus, one_thread: None
) -> dict[str, float]:
    """Nats per token on 25 documents of a domain: of the validation set for the target, of the pool for the damage."""
    model, tokenizer = loaded
    texts: dict[str, list[str]] = {}
    for path in (corpus.validation, *corpus.pool):
        for line in pa.CompressedInputStream(str(path), "zstd").read().splitlines():
            row = json.loads(line)
            if row["domain"] in (TARGET if path == corpus.validation else ("noise", "shuffled")):
                texts.setdefault(row["domain"], []).append(row["text"])
    return {domain: mean_loss(model, tokenizer, found[:25]) for domain, found in texts.items()}


@torch.no_grad()
def mean_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    total, num_tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    return total / num_tokens


def test_model_directory_is_small_and_names_no_place() -> None:
    files = sorted(demo_model_path().iterdir())
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    for path in files:
        if path.suffix == ".json" and path.name != "tokenizer.json":
            assert not [text for text in json.loads(path.read_text()).values() if str(text).startswith(("/", "~"))]


def test_loads_without_warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers keeps its records to itself otherwise.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, local_files_only=True)
        AutoTokenizer.from_pretrained(demo_model_path(), local_files_only=True)
    assert caplog.records == []


def test_tokenizer_is_lossless_and_starts_documents_as_training_did(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = loaded
    text = "def naïve():\n    return '≥ 3 §'  # ok"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == model.config.vocab_size


def test_model_has_learnt_the_target_and_not_the_damage(losses: dict[str, float]) -> None:
    # Measured: docs 3.6, code 2.8, shuffled 5.1, noise 7.5; another Python's text has 0.4 nats or more of room.
    uniform = math.log(2048)  # 7.62
    assert all(losses[domain] < uniform - 3.5 for domain in TARGET)
    assert losses["noise"] > max(losses[domain] for domain in TARGET) + 1.5
    assert losses["shuffled"] > max(losses[domain] for domain in TARGET) + 1.0
