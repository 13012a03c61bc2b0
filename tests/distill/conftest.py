from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from direct_anneal.distill import Scorer, write_scorer
from direct_anneal.distill.scorer import LENGTHS
from selection.pools import chosen
from selection.tiny import documents, write_checkpoint, write_jsonl


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over ninety texts of three domains. To be read, not changed."""
    directory = tmp_path_factory.mktemp("distilled")
    model = write_checkpoint(tmp_path_factory.mktemp("model"))
    write_jsonl(directory / "pool.jsonl", documents(90, seed=2, prefix="p"))
    write_jsonl(directory / "validation.jsonl", documents(24, seed=3, prefix="v", domains=("prose", "code")))
    chosen(model, directory, directory / "run", pool=str(directory / "pool.jsonl"), fraction=0.25)
    return directory / "run"


def random_scorer(unit: str = "words", bits: int = 12, seed: int = 0) -> Scorer:
    """One whose every weight counts."""
    rng = np.random.default_rng(seed)
    return Scorer(
        unit=unit,  # type: ignore[arg-type]
        weights=rng.integers(-(2**30), 2**30, size=2**bits, dtype=np.int32),
        scale=2.0**-28,
        lengths=rng.normal(size=len(LENGTHS) + 1),
        card={"tokens_per_size": 0.25, "vocab_size": 256},
    )


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    """A scorer of words on disk."""
    write_scorer(random_scorer(), tmp_path / "scorer")
    return tmp_path / "scorer"
