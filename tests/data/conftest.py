from __future__ import annotations

import datasets
import pytest


@pytest.fixture(autouse=True)
def _quiet_datasets() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch) -> None:
    """Paths below the working directory are named relative to it: the tests' are."""
    monkeypatch.chdir(tmp_path)
