"""An objective from outside the package, as docs/extending.md has it: by class, by name, and on the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from direct_anneal.cli import main
from direct_anneal.config import objective as registry
from direct_anneal.errors import InputError
from direct_anneal.selection import SelectConfig
from selection.pools import chosen, write_world

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True, scope="module")
def _without_reports(without_reports: None) -> None:
    """Leave out reports in all tests here."""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module of the page, where Python finds it."""
    (code,) = re.findall(r"```python\n# my_objectives\.py\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_objectives.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_objectives"
    sys.modules.pop("my_objectives", None)
    registry._registered.pop("hard", None)


def hardest(out: Path, power: float) -> set[str]:
    table = pq.read_table(out / "selection.parquet")
    gain = table["loss"].to_numpy() / table["num_tokens"].to_numpy() ** power
    count = table["selected"].to_numpy().sum()
    return {table["id"][int(row)].as_py() for row in np.argsort(-gain)[:count]}


def selected(out: Path) -> set[str]:
    table = pq.read_table(out / "selection.parquet")
    return set(table.filter(table["selected"])["id"].to_pylist())


def test_by_name_by_class_beside_and_again(checkpoint: Path, world: Path, tmp_path: Path, plugin: str) -> None:
    run = chosen(
        checkpoint, world, tmp_path / "a", objective="hard", objective_options={"power": 0.5}, plugin=plugin,
        beside="descent",
    )  # fmt: skip
    assert selected(run.out) == hardest(run.out, 0.5)
    content = json.loads((run.out / "manifest.json").read_text())
    assert content["objective"]["name"] == "hard"
    assert content["objective"]["power"] == 0.5
    assert [other["objective"] for other in content["beside"]] == ["descent"]
    assert content["config"]["objective_options"] == {"power": 0.5}

    kind = sys.modules[plugin].HardConfig
    other = chosen(checkpoint, world, tmp_path / "b", objective=kind(power=0.5))
    assert (other.out / "selection.parquet").read_bytes() == (run.out / "selection.parquet").read_bytes()

    again = ["solve", str(run.out), "--plugin", plugin, "--fraction", "0.1", "--out", str(tmp_path / "c")]
    assert main(again) == 0
    assert selected(tmp_path / "c") == hardest(tmp_path / "c", 0.5)
    ours = ["solve", str(run.out), "--objective", "matching", "--out", str(tmp_path / "d"), "--beside", "energy"]
    assert main(ours) == 0


def test_an_option_that_is_out_of_range(plugin: str) -> None:
    given = {"model": "m", "pool": ("p",), "validation": ("v",), "out": "o", "fraction": 0.5, "plugin": plugin}
    with pytest.raises(InputError, match=r"^power in objective_options must be in 0\.\.1, got 2"):
        SelectConfig(objective="hard", objective_options={"power": 2}, **given)
    with pytest.raises(InputError, match="power in objective_options must be a number"):
        SelectConfig(objective="hard", objective_options=["power=much"], **given)
    with pytest.raises(InputError, match="filter must be left out with objective hard"):
        SelectConfig(objective="hard", filter="flat", **given)
    assert SelectConfig(objective="hard", **given).needs == {"gradients"}


def test_a_name_is_taken_once(plugin: str) -> None:
    __import__(plugin)
    with pytest.raises(ValueError, match="rename one"):
        registry.register(type("Other", (registry.ObjectiveConfig,), {"name": "hard"}))
