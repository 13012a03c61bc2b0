"""The report of a pool of tokens: its token layout is the run's, and nothing of the report is lost by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from direct_anneal.data.formats import DatatroveWriter, MegatronWriter
from direct_anneal.export import export
from direct_anneal.report.data import gather
from direct_anneal.selection import select
from selection.pools import options_of, write_validation
from selection.tiny import byte_tokenizer, documents

EOS = 255  # not the model's, and in no document


def write_tokens(directory: Path, format: str) -> Path:
    """Thirty documents as tokens; the last repeats the first."""
    tokenizer = byte_tokenizer()
    tokens = [tokenizer(one["text"])["input_ids"] for one in documents(29, seed=4)]
    tokens.append(tokens[0])
    directory.mkdir()
    if format == "npy":
        ended = [token for document in tokens for token in [*document, EOS]]
        np.array(ended, dtype="<u4").tofile(directory / "pool.npy")  # wider than the vocabulary needs
        return directory / "pool.npy"
    writer = {"bin": MegatronWriter, "ds": DatatroveWriter}[format](directory / "pool", np.dtype("<u2"))
    for document in tokens:
        writer.add(np.array(document, dtype=np.int64))
    writer.close()
    return directory


@pytest.mark.parametrize("format", ["npy", "bin", "ds"])
def test_excerpts_repeats_and_overlaps_are_there(checkpoint: Path, tmp_path: Path, format: str) -> None:
    pool = write_tokens(tmp_path / "pool", format)
    write_validation(tmp_path / "validation.jsonl", 8)
    options = options_of(checkpoint, tmp_path, tmp_path / "run") | {"pool": str(pool), "fraction": 0.5}
    layout = {"token_dtype": "uint32", "eos_id": EOS} if format == "npy" else {}
    select(**options, **layout, objective="matching")
    findings = gather(tmp_path / "run")
    assert not findings.absent
    assert len(findings.excerpts["strongest"]) == 6
    assert findings.repeats["pool"].documents == 30
    assert findings.repeats["pool"].exact >= 1
    assert findings.overlaps.keys() == {"random", "low-perplexity", "middle-perplexity", "gradient-cosine"}
    assert export(str(tmp_path / "run"), to="nanotron", out=tmp_path / "out", eos_id=EOS)["num_documents"] == 15
