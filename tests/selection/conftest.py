from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from direct_anneal.model.checkpoint import Checkpoint
from selection.pools import write_world


@pytest.fixture(autouse=True, scope="module")
def _without_reports(without_reports: None) -> None:
    """Leave out reports in all tests here."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool in every format, and a validation set. To be read, not changed."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads the model fails: for runs whose features are there."""

    def fail(*args: object) -> NoReturn:
        raise AssertionError("the model was loaded, but every feature is there")

    monkeypatch.setattr(Checkpoint, "load_model", fail)
