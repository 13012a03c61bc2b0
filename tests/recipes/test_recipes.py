"""What the recipes for small checkpoints and the bake-off do beside calling the package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules, imported as their scripts import each other."""
    monkeypatch.syspath_prepend(str(RECIPES / "bakeoff"))
    found = {name: importlib.import_module(name) for name in ("splits", "stable_phase", "scenarios")}
    spec = importlib.util.spec_from_file_location("gpu_bakeoff", RECIPES / "gpu" / "bakeoff.py")
    assert spec is not None
    assert spec.loader is not None
    found["gpu"] = sys.modules["gpu_bakeoff"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(found["gpu"])
    return found


def test_documents_serve_one_role_each_in_about_the_shares_that_are_said(recipes: dict[str, ModuleType]) -> None:
    names = [f"domain/{number}" for number in range(4000)]
    roles = [recipes["splits"].role_of(name) for name in names]
    shares = {role: roles.count(role) / 40 for role in set(roles)}
    assert shares == pytest.approx({"stable": 55, "pool": 27, "validation": 6, "development": 6, "test": 6}, abs=2)
    assert roles == [recipes["splits"].role_of(name) for name in names]


def test_a_file_that_is_right_is_left_alone(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    """Its time of change is part of what a comparison goes on with."""
    write, path = recipes["splits"].write_jsonl, tmp_path / "some.jsonl"
    write(path, [{"text": "a b"}])
    os.utime(path, ns=(1, 1))
    write(path, [{"text": "a b"}])
    assert path.stat().st_mtime_ns == 1
    write(path, [{"text": "a"}])
    assert path.stat().st_mtime_ns != 1


def test_fewer_validation_documents_are_spread_over_all(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    records = [{"id": str(number), "text": "line\u2028line"} for number in range(60)]
    path = recipes["splits"].write_jsonl(tmp_path / "validation.jsonl", records)
    fewer = recipes["scenarios"].with_fewer({"validation": [str(path)], "target": ["x"]}, 20)
    kept = [json.loads(line)["id"] for line in Path(fewer["validation"][0]).read_text().rstrip("\n").split("\n")]
    assert kept == [str(number) for number in range(0, 60, 3)]
    assert fewer["target"] == ["x"]


class TestTheClock:
    def test_what_ends_in_time_is_done_or_failed(self, recipes: dict[str, ModuleType], tmp_path: Path) -> None:
        clock = recipes["gpu"].Clock(60.0, tmp_path, "cpu")
        assert clock.run("well", "-c", "print('said')")
        assert not clock.run("ill", "-c", "raise SystemExit(2)")
        assert (tmp_path / "well.log").read_text() == "said\n"

    def test_what_does_not_is_killed_with_its_children(
        self, recipes: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clock = recipes["gpu"].Clock(3.0, tmp_path, "cpu")
        child = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
        assert not clock.run("long", "-c", child)
        assert clock.now() < 30
        pid = int((tmp_path / "long.log").read_text())
        for _ in range(100):  # until its new parent has seen to it
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("the child lives on")
        assert not clock.run("late", "-c", "print('never')")
        assert "long: stopped" in (said := capsys.readouterr().out)
        assert "late: not begun" in said
        assert not (tmp_path / "late.log").exists()


def test_whole_lines_alone_are_gathered(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    for name, content in (("one", '{"a": 1}\n{"a": 2}\n'), ("two", '{"a": 3}\n{"a":')):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "runs.jsonl").write_text(content)
    (tmp_path / "cache" / "one.log").write_text("done\n")
    gather: Any = recipes["gpu"].gather
    for _ in range(2):
        assert gather(tmp_path / "cache", tmp_path / "out") == 3
    assert (tmp_path / "out" / "runs.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    assert (tmp_path / "out" / "logs.txt").read_text() == "== one\ndone\n\n"
