"""Comparisons that mean harm, or were damaged: their lines of runs are believed only when whole."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from markupsafe import Markup

from direct_anneal.cli import main
from direct_anneal.compare.pipeline import _append, _cut_off_half_a_line, known_runs
from direct_anneal.errors import InputError
from report.conftest import write_comparison

LINE = {"scenario": "one", "model": "tiny", "arm": "direct", "fraction": 0.1, "replay": 0.0, "inputs": "0"}
LINES = [{**LINE, "seed": seed, "target_bpb": 1.5 + seed, "domain_bpb": {"pröse": 1.25}} for seed in range(3)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for line in LINES:
        _append(tmp_path / "runs.jsonl", line)
    return tmp_path / "runs.jsonl"


def test_any_flipped_bit_is_detected_or_without_effect(results: Path) -> None:
    rng, content = random.Random(0), results.read_bytes()
    assert list(known_runs(results).values()) == LINES
    detected = 0
    for _ in range(400):
        place, flipped = rng.randrange(8 * len(content) - 8), bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        results.write_bytes(flipped)
        try:
            found = list(known_runs(results).values())
        except InputError:
            detected += 1
        else:
            assert [{name: line[name] for name in LINES[0]} for line in found] == LINES  # "seal" may be "seah"
    assert detected > 350


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[" * 100_000, "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ("{}", "line 2 is no run"),
        ('{"a": NaN}', "line 2 is no JSON"),
        ("1" * 10_000, "line 2 is no JSON"),
        (json.dumps({**LINES[0], "fraction": []}), "line 2 is no run"),
        (json.dumps({**LINES[0], "seed": []}), "line 2 is no run"),
        (json.dumps({**LINES[0], "seal": "0"}), "line 2 was changed since it was written"),
    ],
)
def test_what_is_no_line_is_told_in_one(results: Path, line: str, told: str) -> None:
    lines = results.read_text().splitlines()
    results.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with pytest.raises(InputError, match=told) as refused:
        known_runs(results)
    assert "\n" not in str(refused.value)


SHAPE = {"model": "m", "model_name": None, "scenarios": [], "arms": [], "seeds": [], "fractions": [], "reference": "r"}


@pytest.mark.parametrize(
    "recipe",
    [
        *({}, [], "r", {**SHAPE, "scenarios": [3]}, {**SHAPE, "scenarios": {}}, {**SHAPE, "seeds": 3}),
        *({**SHAPE, "arms": [{"name": []}]}, {**SHAPE, "model": 3}, SHAPE, {**SHAPE, "seal": "0"}),
        {**SHAPE, "scenarios": [{"name": "one"}], "arms": [{"name": "direct"}], "seeds": [0], "fractions": [0.1]}
        | {"model_name": "tiny"},
    ],
)
def test_a_report_of_what_is_no_comparison_is_refused_in_a_line(
    results: Path, capsys: pytest.CaptureFixture[str], recipe: object
) -> None:
    (results.parent / "recipe.json").write_text(json.dumps(recipe))
    assert main(["report", str(results.parent), "--quiet"]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("direct-anneal: ")


def test_lines_that_lack_what_a_page_shows(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of an earlier version have no seal, and may lack anything after damage."""
    monkeypatch.setattr("direct_anneal.compare.figures.draw", lambda *_, **__: Markup(""))
    results.unlink()
    write_comparison(results.parent)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for name in lines[1].keys() - {"inputs"}:
        cut = [lines[0], {key: value for key, value in lines[1].items() if key != name}, *lines[2:]]
        results.write_text("".join(json.dumps(line) + "\n" for line in cut))
        assert main(["report", str(results.parent), "--quiet"]) in (0, 2), name
        assert "Traceback" not in capsys.readouterr().err, name


def test_a_reader_leaves_half_a_line_to_who_writes_it(results: Path) -> None:
    content = results.read_bytes()
    results.write_bytes(content[:-40])
    assert list(known_runs(results).values()) == LINES[:2]
    assert results.read_bytes() == content[:-40]
    _cut_off_half_a_line(results)
    _append(results, LINES[2])
    assert results.read_bytes() == content


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    (tmp_path / "runs.jsonl").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic"):
        _append(tmp_path / "runs.jsonl", LINES[0])
    with pytest.raises(OSError, match="symbolic"):
        _cut_off_half_a_line(tmp_path / "runs.jsonl")
    assert mine.read_text() == "years of work"
