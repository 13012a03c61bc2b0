"""A small model that chooses for another one, with another tokenizer: select, solve, report and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from direct_anneal.errors import InputError
from direct_anneal.export.pipeline import export
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.report import write_report
from direct_anneal.selection import compute_features, select, select_again
from selection.tiny import (
    SKETCH_SIZE,
    WORDS,
    byte_tokenizer,
    chosen_ids,
    documents,
    files_below,
    manifest,
    write_checkpoint,
    write_jsonl,
)

POOL = documents(24, seed=2, prefix="p")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads words, of which nothing is known but configuration and tokenizer."""
    directory = write_checkpoint(tmp_path_factory.mktemp("large") / "model", tokenizer=False)
    words = sorted({word for line in WORDS.values() for word in line.split()})
    vocabulary = {word: token for token, word in enumerate(["[UNK]", "[END]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[END]").save_pretrained(directory)
    next(directory.glob("*.safetensors")).write_bytes(b"not read")
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_jsonl(directory / "pool.jsonl", POOL)
    write_jsonl(directory / "validation.jsonl", documents(12, seed=1, prefix="v", domains=("code",)))
    return directory


def options(world: Path, out: Path) -> dict[str, Any]:
    return {
        "pool": str(world / "pool.jsonl"),
        "validation": str(world / "validation.jsonl"),
        "sketch_size": SKETCH_SIZE,
        "out": out,
    }


@pytest.fixture(scope="module")
def runs(checkpoint: Path, large: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small model's choice for the large one, and for itself."""
    out = tmp_path_factory.mktemp("runs")
    select(model=large, chooser=checkpoint, fraction=0.5, objective="matching", **options(world, out / "for-another"))
    select(model=checkpoint, fraction=0.5, objective="matching", **options(world, out / "for-itself"))
    return out / "for-another", out / "for-itself"


def test_the_choice_is_the_choosers_own(runs: tuple[Path, Path]) -> None:
    ours, own = runs
    assert chosen_ids(ours) == chosen_ids(own)
    features = [{name: data for name, data in files_below(run).items() if "features/" in name} for run in runs]
    assert features[0] == features[1]


def test_the_run_names_both_and_says_whose_tokens_are_counted(
    runs: tuple[Path, Path], checkpoint: Path, large: Path
) -> None:
    told = manifest(runs[0])
    assert (told["config"]["model"], told["config"]["chooser"]) == (str(large), str(checkpoint))
    chooser, model = Checkpoint(str(checkpoint)), Checkpoint(str(large))
    assert told["fingerprints"]["model"] == model.weights_fingerprint()
    assert told["fingerprints"]["chooser"] == chooser.weights_fingerprint()
    assert told["fingerprints"]["tokenizer"] == chooser.tokenizer_fingerprint()
    assert any("sizes in tokens are the chooser's" in said for said in told["warnings"])
    assert "chooser" not in manifest(runs[1])["fingerprints"]
    assert not any("chose for" in said for said in manifest(runs[1])["warnings"])


def test_another_chooser_is_another_run(runs: tuple[Path, Path], large: Path, world: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match="holds another run \\(chooser"):
        select(model=large, chooser=other, fraction=0.5, objective="matching", **options(world, runs[0]))


def test_solve_and_report_need_neither_model(runs: tuple[Path, Path], tmp_path: Path) -> None:
    select_again(runs[0], out=tmp_path / "again", num_samples=5)
    told = manifest(tmp_path / "again")
    assert told["num_selected"] == 5
    assert told["fingerprints"] == manifest(runs[0])["fingerprints"]
    assert any("chose for" in said for said in told["warnings"])
    assert "sizes in tokens are the chooser" in write_report(tmp_path / "again").read_text(encoding="utf-8")


def test_solve_goes_on_from_features(checkpoint: Path, large: Path, world: Path, tmp_path: Path) -> None:
    compute_features(model=large, chooser=checkpoint, **options(world, tmp_path / "features"))
    select_again(tmp_path / "features", out=tmp_path / "run", fraction=0.5, objective="matching")
    assert manifest(tmp_path / "run")["fingerprints"]["model"] == Checkpoint(str(large)).weights_fingerprint()


def test_export_writes_the_models_tokens(runs: tuple[Path, Path], large: Path, tmp_path: Path) -> None:
    record = export(runs[0], to="olmo-core", out=tmp_path / "out")
    tokenizer = Checkpoint(str(large)).load_tokenizer()
    texts = {document["id"]: str(document["text"]) for document in POOL}
    wanted = {name: [*tokenizer(texts[name])["input_ids"], 1] for name in chosen_ids(runs[0])}
    tokens = np.concatenate([np.fromfile(tmp_path / "out" / name, "<u2") for name in record["files"]])
    assert record["eos_id"] == 1
    assert len(tokens) == record["num_tokens"] == sum(map(len, wanted.values()))
    ends = np.flatnonzero(tokens == 1) + 1
    found = [part.tolist() for part in np.split(tokens, ends)[:-1]]
    assert sorted(found) == sorted(wanted.values())
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set()


def test_export_of_text_leaves_it_alone(runs: tuple[Path, Path], tmp_path: Path) -> None:
    record = export(runs[0], to="jsonl", out=tmp_path / "out")
    lines = [json.loads(line) for name in record["files"] for line in (tmp_path / "out" / name).open()]
    texts = {document["id"]: document["text"] for document in POOL}
    assert {line["id"]: line["text"] for line in lines} == {name: texts[name] for name in chosen_ids(runs[0])}


def test_tokens_are_one_tokenizers_alone(checkpoint: Path, large: Path, world: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    records = [{"id": each["id"], "input_ids": tokenizer(str(each["text"]))["input_ids"]} for each in POOL]
    given = options(world, tmp_path / "run") | {"pool": str(write_jsonl(tmp_path / "tokens.jsonl", records))}
    with pytest.raises(InputError, match="pool must be text where chooser has another tokenizer"):
        select(model=large, chooser=checkpoint, fraction=0.5, **given)


def test_a_chooser_that_is_not_there_is_named(large: Path, world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chooser must be a checkpoint directory or a hub name"):
        select(model=large, chooser=tmp_path / "none", fraction=0.5, **options(world, tmp_path / "run"))


def test_with_retained_text_the_floor_is_in_the_choosers_gradients(
    checkpoint: Path, large: Path, world: Path, tmp_path: Path
) -> None:
    """`--chooser` with `--retain`: the choice and its floor are those that the small model makes for itself."""
    write_jsonl(tmp_path / "retain.jsonl", documents(9, seed=7, prefix="r", domains=("prose",)))
    given = {"retain": str(tmp_path / "retain.jsonl"), "retain_floor": 0.9, "objective": "matching", "fraction": 0.5}
    select(model=large, chooser=checkpoint, **given, **options(world, tmp_path / "for-another"))
    select(model=checkpoint, **given, **options(world, tmp_path / "for-itself"))
    ours, own = tmp_path / "for-another", tmp_path / "for-itself"
    assert chosen_ids(ours) == chosen_ids(own)
    assert manifest(ours)["retain"] == manifest(own)["retain"]
    assert manifest(ours)["retain"]["reached_ratio"] >= 0.9
    assert "chooser" in manifest(ours)["fingerprints"]


def test_by_the_path(checkpoint: Path, large: Path, world: Path, tmp_path: Path) -> None:
    given = {
        "objective": "path",
        "objective_options": {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2, "min_order": 0.0},
        "fraction": 0.5,
    }
    select(model=large, chooser=checkpoint, **given, **options(world, tmp_path / "for-another"))
    select(model=checkpoint, **given, **options(world, tmp_path / "for-itself"))
    assert chosen_ids(tmp_path / "for-another") == chosen_ids(tmp_path / "for-itself")
