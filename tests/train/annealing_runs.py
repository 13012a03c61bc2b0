"""Shared by the annealing tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.data import Corpus, Fields, expand, prepare
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.train import anneal
from selection.tiny import documents, write_jsonl

WINDOW = 32
BATCH = 4
MODEL_FILES = ("config.json", "model.safetensors", "optimizer.pt", "tokenizer.json")


def write_data(path: Path, count: int = 40, seed: int = 5) -> Path:
    return write_jsonl(path, documents(count, seed=seed, prefix=path.stem))


def annealed(model: Path, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    """`anneal` with small defaults: 12 steps unless another length is asked for."""
    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "out": out,
        "learning_rate": 0.01,
        "batch_size": BATCH,
        "max_length": WINDOW,
    }
    if "epochs" not in options:
        given["num_tokens"] = 12 * BATCH * WINDOW
    return anneal(**(given | options))


def model_bytes(out: Path) -> dict[str, bytes]:
    """The files of a model, those that there are."""
    return {name: (out / name).read_bytes() for name in MODEL_FILES if (out / name).exists()}


def corpus_of(model: Path, data: Path, directory: Path) -> Corpus:
    """The documents as `anneal` reads them."""
    checkpoint = Checkpoint(str(model))
    return prepare(
        expand([str(data)], "data"),
        role="data",
        fields=Fields(),
        load_tokenizer=checkpoint.load_tokenizer,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=WINDOW,
        directory=directory,
    )
