"""Whole runs over sources that call their fields differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from direct_anneal.cli import main
from direct_anneal.errors import InputError
from direct_anneal.export import export
from direct_anneal.report.data import gather
from selection.pools import chosen, exported_lines
from selection.tiny import chosen_ids, documents, evidence, files_below, manifest, write_jsonl

NAMES: dict[str, Any] = {"text_field": ["text", "content"], "id_field": ["id", "key"]}
OTHERS = {"text": "content", "id": "key"}


def renamed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{OTHERS.get(name, name): value for name, value in record.items()} for record in records]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the pool and all of the validation set under other names. To be read, not changed."""
    directory = tmp_path_factory.mktemp("names")
    for name, second in (("pool", renamed), ("alike", list)):
        (directory / name).mkdir()
        write_jsonl(directory / name / "a.jsonl", documents(12, seed=2))
        write_jsonl(directory / name / "b.jsonl", second(documents(12, seed=3, prefix="e")))
    write_jsonl(directory / "validation.jsonl", renamed(documents(12, seed=4, prefix="v")))
    return directory


@pytest.fixture(scope="module")
def out(checkpoint: Path, place: Path) -> Path:
    """A finished run. To be read, not changed."""
    return chosen(checkpoint, place, place / "out", fraction=0.5, **NAMES).out


def test_it_is_the_run_over_sources_that_are_alike(checkpoint: Path, place: Path, out: Path, tmp_path: Path) -> None:
    alike = chosen(checkpoint, place, tmp_path / "out", fraction=0.5, pool=str(place / "alike"), **NAMES).out
    columns = ["id", "domain", "loss", "rank", "selected"]
    assert evidence(out).select(columns).equals(evidence(alike).select(columns))
    assert manifest(out)["fingerprints"] == manifest(alike)["fingerprints"]
    assert not any("left out" in warning for warning in manifest(out)["warnings"])


def test_the_same_command_again_finds_it_done(checkpoint: Path, place: Path, out: Path) -> None:
    before = files_below(out)
    words = ["select", "--config", str(out / "options.json"), "--text-field", "text", "content"]
    assert main([*words, "--id-field", "id", "--id-field", "key"]) == 0
    assert files_below(out).keys() == before.keys()
    assert files_below(out)["features/pool/store.json"] == before["features/pool/store.json"]
    with pytest.raises(InputError, match=r"text_field: there \['text', 'content'\], now text"):
        chosen(checkpoint, place, out, fraction=0.5, id_field=NAMES["id_field"])


def test_what_comes_after_finds_the_fields_again(out: Path, tmp_path: Path) -> None:
    assert main(["solve", str(out), "--num-samples", "5", "--out", str(tmp_path / "solved")]) == 0
    assert len(chosen_ids(tmp_path / "solved")) == 5
    export(out, to="jsonl", out=tmp_path / "exported")
    lines = [line for path in (tmp_path / "exported").glob("part-*") for line in exported_lines(path)]
    assert [set(json.loads(line)) for line in lines] == [{"id", "domain", "text"}] * 12
    findings = gather(out)
    assert not findings.absent
    assert all(excerpt.text for excerpts in findings.excerpts.values() for excerpt in excerpts)


def test_the_prompts_names_are_none_of_the_texts(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompt_field must be another field than the text's, got question content"):
        chosen(checkpoint, place, tmp_path / "out", prompt_field=["question", "content"], **NAMES)
