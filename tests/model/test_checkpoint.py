from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint, DtypeName
from selection.tiny import CONTEXT, VOCAB_SIZE, write_checkpoint


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))


def configure(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def test_what_the_configuration_says(checkpoint: Path) -> None:
    opened = Checkpoint(str(checkpoint))
    assert opened.context_length == CONTEXT
    assert opened.vocab_size == VOCAB_SIZE


def test_a_home_directory_is_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert Checkpoint(f"~/{checkpoint.name}").vocab_size == VOCAB_SIZE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_comes_with_its_weights_in_evaluation_mode(checkpoint: Path, dtype: DtypeName) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", dtype)
    stored = load_file(checkpoint / "model.safetensors")
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == getattr(torch, dtype)
        assert parameter.requires_grad
        torch.testing.assert_close(parameter.detach(), stored[name].to(parameter.dtype), rtol=0, atol=0)


def test_the_tokenizer_is_the_one_beside_the_weights(checkpoint: Path) -> None:
    tokenizer = Checkpoint(str(checkpoint)).load_tokenizer()
    text = "é, ≤ and\nso on"
    tokens = tokenizer([text])["input_ids"][0]
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


class TestFingerprints:
    def test_equal_files_have_equal_ones_wherever_they_lie(self, checkpoint: Path, copy: Path) -> None:
        here, there = Checkpoint(str(checkpoint)), Checkpoint(str(copy))
        assert here.weights_fingerprint() == there.weights_fingerprint()
        assert here.tokenizer_fingerprint() == there.tokenizer_fingerprint()

    def test_one_bit_of_a_weight_counts(self, checkpoint: Path, copy: Path) -> None:
        weights = copy / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert Checkpoint(str(copy)).weights_fingerprint() != Checkpoint(str(checkpoint)).weights_fingerprint()
        assert Checkpoint(str(copy)).tokenizer_fingerprint() == Checkpoint(str(checkpoint)).tokenizer_fingerprint()

    def test_the_configuration_counts(self, checkpoint: Path, copy: Path) -> None:
        configure(copy, rms_norm_eps=1e-3)
        assert Checkpoint(str(copy)).weights_fingerprint() != Checkpoint(str(checkpoint)).weights_fingerprint()

    def test_the_tokenizer_counts_for_itself(self, checkpoint: Path, copy: Path) -> None:
        with (copy / "tokenizer.json").open("a") as stream:
            stream.write(" ")
        assert Checkpoint(str(copy)).tokenizer_fingerprint() != Checkpoint(str(checkpoint)).tokenizer_fingerprint()
        assert Checkpoint(str(copy)).weights_fingerprint() == Checkpoint(str(checkpoint)).weights_fingerprint()

    def test_other_files_do_not_count(self, checkpoint: Path, copy: Path) -> None:
        (copy / "README.md").write_text("notes")
        assert Checkpoint(str(copy)).weights_fingerprint() == Checkpoint(str(checkpoint)).weights_fingerprint()


class TestRefusals:
    def test_no_tokenizer(self, tmp_path: Path) -> None:
        opened = Checkpoint(str(write_checkpoint(tmp_path / "bare", tokenizer=False)))
        with pytest.raises(InputError, match="give documents as input_ids"):
            opened.load_tokenizer()
        assert len(opened.tokenizer_fingerprint()) == 64

    def test_the_message_is_one_line(self, copy: Path) -> None:
        configure(copy, model_type="nonesuch")
        with pytest.raises(InputError) as refusal:
            Checkpoint(str(copy))
        assert "\n" not in str(refusal.value)
        assert "nonesuch" in str(refusal.value)
