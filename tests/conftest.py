from __future__ import annotations

import os

# Before the libraries that read them are imported: no test may reach for a network, or draw over pytest's output.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Nor fight with what else runs on the machine: matrices this small gain nothing from threads that spin for them.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selection.tiny import write_checkpoint


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """For torch too, whoever imported it first."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def without_reports() -> Iterator[None]:
    """For tests of whole runs: a page takes longer to draw than such a run takes. tests/report has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("direct_anneal.report.try_report", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and width 16 with a tokenizer of bytes, context 64. To be read, not changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
