"""Random bits flipped over all files of a run: each is detected, or changes nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from direct_anneal.errors import InputError
from direct_anneal.run.layout import ROLES
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.verify_run import verify_run
from selection.pools import chosen, write_world

FLIPS = int(os.environ.get("DIRECT_ANNEAL_FLIPS", "1000"))


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of file that a run has. To be changed in one place, and put back."""
    directory = write_world(tmp_path_factory.mktemp("flipped"))
    chosen(checkpoint, directory, directory / "run", curvature="mc-fisher", frontier=(0.9,), relax_budget=True)
    return directory / "run"


def test_every_flipped_bit_is_detected_or_without_effect(run: Path) -> None:
    whole, rng, seen = dict(_content(run, Path("manifest.json"))), random.Random(0), Counter[str]()
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size]
    for number in range(FLIPS):
        path = files[number % len(files)]  # every file in turn, however small
        content = path.read_bytes()
        stat = path.stat()
        place = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            # What reads a run goes by `RunDir`: all that it gives is compared, and a remark for nobody is no result.
            try:
                for part, value in _content(run, path.relative_to(run)):
                    assert _same(value, whole[part]), f"{path.relative_to(run)}, bit {place}, changes {part} unseen"
            except InputError as error:
                seen["refused in a line" if "\n" not in str(error) else "told in more"] += 1
            else:
                seen["without effect"] += 1
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert seen["refused in a line"] > FLIPS / 3
    assert not seen["told in more"]
    assert not [finding for finding in verify_run(run) if not finding.harmless]


@pytest.fixture(scope="module")
def path_run(checkpoint: Path, run: Path) -> Path:
    """A run by the descent path: its losses, and weights that are kept at the path's end."""
    quick = {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2, "min_order": 1e-9}
    return chosen(checkpoint, run.parent, run.parent / "path", objective="path", objective_options=quick).out


@pytest.mark.parametrize("kind", ["run", "path_run"])
def test_verify_names_a_file_of_every_kind(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A bit in the middle of each: where the run does not look, `verify` does."""
    copy = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "run"))
    assert kind == "run" or list((copy / "path").glob("*.safetensors"))
    assert not list(verify_run(copy))
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        path.write_bytes(flipped)
        found = [finding for finding in verify_run(copy) if not finding.harmless]
        path.write_bytes(content)
        assert found or _is_blank(content[len(content) // 2]), path
    assert not list(verify_run(copy))


def _is_blank(byte: int) -> bool:
    """Between the members of a record white space may become other white space."""
    return bytes([byte]) in (b" ", b"\n", b"\t", b"!")


def _content(path: Path, flipped: Path) -> Iterator[tuple[str, Any]]:
    """All that solve, export, report and compare read of a run; first what reads the flipped file, which is most often
    refused there."""
    run = RunDir.open(path)
    readers: list[Callable[[], dict[str, Any]]] = [lambda: _of_run(run)]
    for role in ROLES:
        readers += [lambda role=role: _of_corpus(run, role), lambda role=role: _of_features(run, role)]  # type: ignore[misc]
    if len(flipped.parts) > 2:
        role = flipped.parts[1].partition("-")[0]
        readers.insert(0, readers.pop(1 + 2 * ROLES.index(role) + (flipped.parts[0] == "features")))
    for reader in readers:
        yield from reader().items()


def _of_run(run: RunDir) -> dict[str, Any]:
    return {
        "manifest": run.manifest,
        "config": run.configured({"overwrite": True}),
        "tokens": run.tokens,
        "coverage": run.coverage(),
        "evidence": run.evidence(),
        "selected": run.selected(),
    }


def _of_corpus(run: RunDir, role: str) -> dict[str, Any]:
    corpus = run.corpus(role)
    return {
        f"{role} tokens": np.concatenate([corpus.tokens(i) for i in range(corpus.num_samples)]),
        f"{role} prompts": corpus.num_prompt,
        f"{role} index": corpus.index,
        f"{role} issues": corpus.issues.to_manifest(),
    }


def _of_features(run: RunDir, role: str) -> dict[str, Any]:
    gradients = run.features(role)
    assert gradients.ngrams is not None
    return {
        f"{role} units": np.concatenate(gradients.units),
        f"{role} ngrams": np.concatenate(gradients.ngrams),
        f"{role} samples": gradients.samples,
        f"{role} quarantined": gradients.quarantined,
        f"{role} remarks": run.store(role).remarks(),
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return one.equals(other) if isinstance(one, pa.Table) else bool(one == other)
