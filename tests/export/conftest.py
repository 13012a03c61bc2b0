from __future__ import annotations

from pathlib import Path

import pytest

from selection.pools import chosen, write_world
from selection.tiny import documents, write_checkpoint, write_jsonl


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A finished run over a pool in every format, a part of it tokenised. To be read, not changed."""
    directory = write_world(tmp_path_factory.mktemp("world"))
    chosen(model, directory, directory / "run", fraction=0.5)
    return directory / "run"


@pytest.fixture(scope="session")
def prompted(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """One whose documents begin with prompts. To be read, not changed."""
    directory = tmp_path_factory.mktemp("prompted")
    for name, count, seed in (("pool", 20, 5), ("validation", 10, 6)):
        records = [{**record, "prompt": "Q: "} for record in documents(count, seed=seed, prefix=name)]
        write_jsonl(directory / f"{name}.jsonl", records)
    pool = str(directory / "pool.jsonl")
    chosen(model, directory, directory / "run", pool=pool, prompt_field="prompt", fraction=0.5)
    return directory / "run"
