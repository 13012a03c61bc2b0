"""Checkpoints of the hub from the local cache: two revisions, and one that lies in a subfolder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint
from selection.tiny import write_checkpoint

COMMITS = {"main": "a" * 40, "stage1-step100": "b" * 40}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as it lies on disk: blobs, links to them by revision, and names of revisions."""
    repository = tmp_path / "hub" / "models--org--tiny"
    for seed, (name, commit) in enumerate(COMMITS.items()):
        saved = write_checkpoint(tmp_path / f"saved-{seed}", seed=seed)
        shutil.copytree(saved, saved / "deep" / "er")
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        for number, path in enumerate(sorted(path for path in saved.rglob("*") if path.is_file())):
            blob = repository / "blobs" / f"{seed}-{number}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(path, blob)
            link = repository / "snapshots" / commit / path.relative_to(saved)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def weight(checkpoint: Checkpoint) -> torch.Tensor:
    return next(checkpoint.load_model("cpu", "float32").parameters()).detach()


def test_revisions_are_two_checkpoints(cache: Path) -> None:
    main = Checkpoint("org/tiny")
    other = Checkpoint("org/tiny", revision="stage1-step100")
    assert main.weights_fingerprint() == Checkpoint(str(cache / "saved-0")).weights_fingerprint()
    assert other.weights_fingerprint() == Checkpoint(str(cache / "saved-1")).weights_fingerprint()
    assert main.weights_fingerprint() != other.weights_fingerprint()
    assert not torch.equal(weight(main), weight(other))
    by_commit = Checkpoint("org/tiny", revision=COMMITS["stage1-step100"])
    assert by_commit.weights_fingerprint() == other.weights_fingerprint()


def test_a_subfolder_has_weights_and_tokenizer_of_its_own(cache: Path) -> None:
    below = Checkpoint("org/tiny", revision="stage1-step100", subfolder="deep/er")
    assert below.directory.parts[-2:] == ("deep", "er")
    assert below.has_tokenizer
    assert torch.equal(weight(below), weight(Checkpoint(str(cache / "saved-1"), subfolder="deep/er")))


def test_one_that_is_not_in_the_cache_is_told_with_its_revision(cache: Path) -> None:
    with pytest.raises(InputError, match=r"org/tiny at revision nowhere .* could not be fetched"):
        Checkpoint("org/tiny", revision="nowhere")


def test_what_cannot_be(cache: Path) -> None:
    here = str(cache / "saved-0")
    with pytest.raises(InputError, match="revision must go with a hub name"):
        Checkpoint(here, revision="main")
    with pytest.raises(InputError, match="subfolder must be a path below"):
        Checkpoint(here, subfolder="../saved-1")
    with pytest.raises(InputError, match=r"absent has no config\.json"):
        Checkpoint(here, subfolder="absent")
