"""The report of a comparison: from its lines alone, the same again, harmless whatever arms and domains are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from direct_anneal.cli import main
from direct_anneal.compare import report as comparison_report
from direct_anneal.compare import table
from direct_anneal.compare.pipeline import known_runs
from direct_anneal.errors import InputError
from report.conftest import ARMS, write_comparison
from report.pages import harmless


def test_it_says_what_the_table_says(compared: Path) -> None:
    text = harmless((compared / "report.html").read_text(encoding="utf-8")).text
    for row in table(list(known_runs(compared / "runs.jsonl").values()), "random"):
        assert row.arm in text or row.fraction == 0
        assert f"{row.target:.4f}" in text
        if row.target_difference is not None and row.target_difference.low is not None:
            assert f"{row.target_difference.mean:+.4f}".replace("-", "−") in text
            assert f"[{row.target_difference.low:+.4f}, ".replace("-", "−") in text
    assert "better than random on the target, and worse on others" in text.replace("Better", "better")


def test_it_is_made_again_to_the_same_bytes(compared: Path) -> None:
    before = (compared / "report.html").read_bytes()
    assert len(before) < 3_000_000
    assert main(["report", str(compared)]) == 0
    assert (compared / "report.html").read_bytes() == before


def test_lines_of_other_recipes_and_their_order_do_not_matter(compared: Path, tmp_path: Path) -> None:
    lines = (compared / "runs.jsonl").read_text().splitlines()
    strangers = [json.dumps(json.loads(lines[1]) | other) for other in ({"arm": "stranger"}, {"seed": 9})]
    (tmp_path / "runs.jsonl").write_text("\n".join([*strangers, *reversed(lines)]) + "\n")
    (tmp_path / "recipe.json").write_bytes((compared / "recipe.json").read_bytes())
    assert comparison_report.write_report(tmp_path).read_bytes() == (compared / "report.html").read_bytes()


def test_what_to_know_of_few_and_unfinished_runs(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=(7, 8))
    lines = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-1]))
    text = harmless(comparison_report.write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Not every run is finished: an arm has 1 of 2 seeds" in text
    assert "Seeds: 1. That gives no interval" in text


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "$x^{$ \"'", "‮" + "long " * 30)
    write_comparison(tmp_path, arms=("random", *names), domains=("code", "<b>bold", "a$b$"))
    read = harmless(comparison_report.write_report(tmp_path).read_text(encoding="utf-8"))
    assert names[0] in read.text
    assert names[1] in read.text


def test_one_arm_alone(tmp_path: Path) -> None:
    write_comparison(tmp_path, arms=("random",))
    text = harmless(comparison_report.write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Gain against forgetting" in text
    assert "Domain by domain" not in text


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"DIR must be the directory of a comparison.*no recipe\.json"):
        comparison_report.write_report(tmp_path)
    write_comparison(tmp_path)
    (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="at least one annealed arm"):
        comparison_report.write_report(tmp_path)


def test_every_arm_of_the_recipe_is_in_the_order_of_its_gain(compared: Path) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    numbers = page[page.index("In numbers") :]
    assert sorted(ARMS, key=lambda arm: numbers.index(f"<td>{arm}</td>")) == ["direct", "cosine", "random"]
