"""Gradients that would spoil every sum: left out of a run, and named with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from direct_anneal.gradients import GradientSketcher, Sketches
from selection.pools import chosen
from selection.tiny import (
    POISON,
    byte_tokenizer,
    chosen_ids,
    documents,
    evidence,
    manifest,
    write_checkpoint,
    write_jsonl,
)

ILL = {"x003": "nan", "x008": "infinite", "x013": "outlier"}
MARKS = {"infinite": "^", "outlier": "`"}  # like `POISON`, in no ordinary document


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose gradients are NaN, infinite or far too long where a document ends with a mark."""
    factors = {
        byte_tokenizer().convert_tokens_to_ids(MARKS["infinite"]): math.inf,
        byte_tokenizer().convert_tokens_to_ids(MARKS["outlier"]): 1e6,
    }
    real = GradientSketcher.sketch

    def scaled(self: GradientSketcher, ids: torch.Tensor, *more: Any) -> Sketches:
        sketches = real(self, ids, *more)
        for token, factor in factors.items():
            sketches.values[(ids == token).any(1)] *= factor
        return sketches

    monkeypatch.setattr(GradientSketcher, "sketch", scaled)
    return write_checkpoint(tmp_path / "model", poisoned=True)


def with_ill(count: int, **options: Any) -> list[dict[str, Any]]:
    records = documents(count, prefix="x", **options)
    marks = MARKS | {"nan": POISON}
    for record in records:
        if record["id"] in ILL:
            record["text"] += marks[ILL[record["id"]]]
    return records


@pytest.mark.parametrize("role", ["pool", "validation"])
def test_they_are_left_out_named_and_counted(model: Path, world: Path, tmp_path: Path, role: str) -> None:
    path = write_jsonl(tmp_path / "ill.jsonl", with_ill(24, seed=5))
    out = chosen(model, world, tmp_path / "out", num_samples=12, **{role: str(path)}).out
    content = manifest(out)
    wanted = [{"id": name, "source": str(path), "row": int(name[1:]), "reason": why} for name, why in ILL.items()]
    listed = (out / "features" / role / "quarantined.jsonl").read_text().splitlines()
    assert content["corpora"][role]["quarantined"] == {"count": 3, "samples": wanted}
    assert [json.loads(line) for line in listed] == wanted
    (told,) = [warning for warning in content["warnings"] if "their gradients are unusable" in warning]
    assert told.startswith(f"{role}: 3 documents left out")
    assert "1 NaN, 1 infinite, 1 above 100 times the median norm" in told
    if role == "validation":
        assert content["spectrum"]["num_validation"] == 21
    else:
        assert not chosen_ids(out) & ILL.keys()
        rows = {row["id"]: row for row in evidence(out).to_pylist()}
        assert {name for name, row in rows.items() if row["rank"] is None} == ILL.keys()
        assert rows["x013"]["grad_norm"] > 0  # what was measured stays


def test_the_rest_is_chosen_from_as_if_they_were_not_there(model: Path, world: Path, tmp_path: Path) -> None:
    records = with_ill(24, seed=5)
    results = []
    for name, kept in (("with", records), ("without", [record for record in records if record["id"] not in ILL])):
        pool = write_jsonl(tmp_path / f"{name}.jsonl", kept)
        out = chosen(model, world, tmp_path / name, pool=str(pool), num_samples=8).out
        results.append((chosen_ids(out), manifest(out)["budget"]["limit"]))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)  # batches differ, and with them float32's rounding


def test_a_gradient_of_zero_is_one(world: Path, checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = GradientSketcher.sketch

    def still(self: GradientSketcher, ids: torch.Tensor, *more: Any) -> Sketches:
        sketches = real(self, ids, *more)
        sketches.values[(ids == byte_tokenizer().convert_tokens_to_ids(POISON)).any(1)] = 0
        return sketches

    monkeypatch.setattr(GradientSketcher, "sketch", still)
    records = documents(12, seed=5)
    records[4]["text"] += POISON
    pool = write_jsonl(tmp_path / "pool.jsonl", records)
    out = chosen(checkpoint, world, tmp_path / "out", pool=str(pool)).out
    assert manifest(out)["corpora"]["pool"]["quarantined"] == {"count": 0, "samples": []}
    row = pq.read_table(out / "selection.parquet").to_pylist()[4]
    assert (row["grad_norm"], row["stiff_cost"]) == (0, 0)
    assert row["rank"] is not None


def test_the_manifest_names_at_most_a_hundred(world: Path, tmp_path: Path) -> None:
    records = documents(150, seed=5)
    for record in records[:120]:
        record["text"] = f"{POISON} {record['id']}"
    pool = write_jsonl(tmp_path / "pool.jsonl", records)
    out = chosen(write_checkpoint(tmp_path / "model", poisoned=True), world, tmp_path / "out", pool=str(pool)).out
    entry = manifest(out)["corpora"]["pool"]["quarantined"]
    assert (entry["count"], len(entry["samples"])) == (120, 100)
    assert len((out / "features" / "pool" / "quarantined.jsonl").read_text().splitlines()) == 120
