"""Checkpoints that mean harm: absurd sizes, code, broken tokenizers. One line each, and nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from direct_anneal.cli import main
from selection.tiny import SKETCH_SIZE, documents, write_jsonl

DEEP = '{"a":' + "[" * 100_000
CODE = "open({!r}, 'w')\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", documents(12, seed=1))


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt, with code beside it that leaves a trace where it runs."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (directory / "harm.py").write_text(CODE.format(str(tmp_path / "it-ran")))
    return directory


def edited(name: str, **members: Any) -> Callable[[Path], object]:
    def edit(model: Path) -> None:
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | members))

    return edit


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda model: (model / name).write_bytes(raw)


def bpe(**members: Any) -> Callable[[Path], object]:
    """Another model of the tokenizer."""

    def edit(model: Path) -> None:
        content = json.loads((model / "tokenizer.json").read_text())
        content["model"] |= members
        (model / "tokenizer.json").write_text(json.dumps(content))

    return edit


def ids_without_end(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["added_tokens"] = [{"id": 2**70, "content": "<x>", "special": True}]
    (model / "tokenizer.json").write_text(json.dumps(content))


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Harm(model.parent / "it-ran"), 2))


def packed(model: Path) -> None:
    """Weights as torch saves them, in an archive that could unpack to a thousand times its size."""
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(10**5)}, model / "whole")
    with (
        zipfile.ZipFile(model / "whole") as whole,
        zipfile.ZipFile(model / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        make(model / name)

    return replace


class _Harm:
    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._proof,)


AUTO = {"AutoConfig": "harm.Config", "AutoModelForCausalLM": "harm.Model", "AutoTokenizer": ["harm.T", "harm.T"]}
SPOILT: dict[str, Callable[[Path], object]] = {
    "a vocabulary of 2^40": edited("config.json", vocab_size=2**40),
    "a vocabulary of 2^30": edited("config.json", vocab_size=2**30),
    "a negative vocabulary": edited("config.json", vocab_size=-5),
    "no vocabulary": edited("config.json", vocab_size=0),
    "a vocabulary in words": edited("config.json", vocab_size="many"),
    "a negative width": edited("config.json", hidden_size=-16),
    "layers without end": edited("config.json", num_hidden_layers=10**9),
    "negative layers": edited("config.json", num_hidden_layers=-3),
    "no heads": edited("config.json", num_attention_heads=0),
    "an unknown kind": edited("config.json", model_type="harm"),
    "code": edited("config.json", model_type="harm", auto_map=AUTO),
    "no object": written("config.json", "[1]"),
    "depth": written("config.json", DEEP),
    "bytes": written("config.json", b"\xff\xfe\0"),
    "settings of depth": written("generation_config.json", DEEP),
    "settings of half": written("generation_config.json", '{"eos_token_id": '),
    "a tokenizer of bytes": written("tokenizer.json", b"\xff\xfe\0"),
    "a tokenizer of nothing": written("tokenizer.json", ""),
    "a tokenizer without members": written("tokenizer.json", "{}"),
    "a tokenizer of depth": written("tokenizer.json", DEEP),
    "merges of what is not there": bpe(merges=[f"q{number} z{number}" for number in range(50_000)]),
    "merges that are none": bpe(merges=[1, 2, 3]),
    "negative ids": bpe(vocab={"a": -1}),
    "ids without end": ids_without_end,
    "a tokenizer with code": edited("tokenizer_config.json", tokenizer_class="Harm", auto_map=AUTO),
    "a tokenizer's depth": written("tokenizer_config.json", DEEP),
    "a header of 2^60 bytes": written("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
    "weights with code": pickled,
    "packed weights": packed,
    "weights that wait": instead("model-00002.safetensors", os.mkfifo),
    "a configuration that waits": instead("config.json", os.mkfifo),
    "settings that wait": instead("generation_config.json", os.mkfifo),
    "a tokenizer that waits": instead("special_tokens_map.json", os.mkfifo),
    "a tokenizer without end": instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
    "a tokenizer of a terabyte": lambda model: os.truncate(model / "tokenizer.json", 2**40),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_is_refused_in_a_line(
    model: Path, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    SPOILT[kind](model)
    words = ["select", "--model", model, "--pool", texts, "--validation", texts, "--out", tmp_path / "out"]
    code = main([*map(str, words), "--sketch-size", str(SKETCH_SIZE), "--num-samples", "3", "--quiet"])
    told = capfd.readouterr().err
    assert code == 2, told
    assert told.startswith("direct-anneal: "), told
    assert told.count("\n") == 1, told
    assert not (tmp_path / "it-ran").exists()
