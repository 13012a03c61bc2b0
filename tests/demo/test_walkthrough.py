"""The demo's comparison of objectives, and its words on the path."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from direct_anneal.demo.walkthrough import PATH, _differences, _side_by_side
from direct_anneal.objectives.path import PathObjective


def manifest(selected: dict[str, int], **others: Any) -> dict[str, Any]:
    pool = {"docs": 20, "code": 20, "logs": 40, "noise": 20}
    domains = {name: {"pool": count, "selected": selected.get(name, 0)} for name, count in pool.items()}
    return {"composition": {"domains": domains}, **others}


def test_what_each_would_choose_stands_side_by_side() -> None:
    beside = {"energy": {"noise": 8, "code": 2}, "matching": {"docs": 9, "logs": 1}}
    chosen = manifest(
        {"code": 10}, beside=[{"objective": name, "domains": domains} for name, domains in beside.items()]
    )
    shown = Console(record=True, width=100, file=StringIO())
    shown.print(_side_by_side(chosen))
    rows = [line.split() for line in shown.export_text().splitlines() if "%" in line]
    assert [row[-3:] for row in rows] == [
        ["40%", "20%", "40%"],
        ["20%", "80%", "0%"],
        ["90%", "0%", "10%"],
        ["100%", "0%", "0%"],
    ]


def test_it_says_what_was_cut_short() -> None:
    PathObjective(**PATH)  # options that it knows
    assert "a single walk at rate 0.001, for 1 pass." in " ".join(_differences().split())
