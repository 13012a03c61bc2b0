"""Warnings of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from direct_anneal.errors import InputError
from direct_anneal.gradients import hooks
from direct_anneal.objectives import base
from direct_anneal.progress import Advance, Silent
from direct_anneal.report import print_summary
from direct_anneal.solver import InfeasibleBudgetError, InfeasibleError, Selection, SelectionProblem, solve
from selection.pools import chosen
from selection.tiny import documents, write_jsonl


def test_a_pool_that_holds_the_validation_set_is_told(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    apart = chosen(checkpoint, world, tmp_path / "apart")
    assert not any("are in the validation set" in doubt for doubt in apart.manifest["warnings"])
    validation = world / "validation.jsonl"
    count = len(validation.read_text().splitlines())
    mixed = chosen(checkpoint, world, tmp_path / "mixed", pool=[str(world / "pool"), str(validation)])
    assert any(doubt.startswith(f"{count:,} documents of the pool are in") for doubt in mixed.manifest["warnings"])


def test_a_validation_set_like_the_pool_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """Chance sets the means of one distribution apart; between domains it is more than chance."""
    (tmp_path / "pool").mkdir()
    write_jsonl(tmp_path / "pool" / "part.jsonl", documents(200, seed=2, prefix="p"))
    told, known = {}, {}
    for name, domains in (("like it", None), ("another", ("prose",))):
        some = {} if domains is None else {"domains": domains}
        write_jsonl(tmp_path / "validation.jsonl", documents(60, seed=3, prefix="v", **some))
        run = chosen(checkpoint, tmp_path, tmp_path / name, objective="matching")
        told[name] = any("the selection is weakly targeted" in warning for warning in run.manifest["warnings"])
        known[name] = run.manifest["objective"]["known"]
    assert told == {"like it": True, "another": False}
    assert known["like it"] < 0.25 < 0.5 < known["another"] < 1.0


def test_a_source_with_other_names_is_named(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"body": "under another name"}\n')
    run = chosen(checkpoint, world, tmp_path / "out", pool=[str(world / "pool"), str(other)])
    (told,) = [doubt for doubt in run.manifest["warnings"] if "--text-field text content" in doubt]
    assert told.startswith(f"pool: no document of {other} can be used")


def test_choosing_tells_how_far_it_is(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    amounts: list[int] = []

    class Kept(Silent):
        @contextmanager
        def stage(self, name: str, *_: Any, **__: Any) -> Iterator[Advance]:
            yield amounts.append if name == "Choosing" else lambda _: None

    run = chosen(checkpoint, world, tmp_path / "out", progress=Kept())
    num_documents = sum(entry["pool"] for entry in run.manifest["composition"]["domains"].values())
    assert sum(amounts) >= num_documents


def test_the_alternative_says_at_which_ratio_it_stands(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    budgets = {
        name: chosen(checkpoint, world, tmp_path / name, objective=name, beside=other).manifest
        for name, other in (("energy", "matching"), ("matching", "energy"))
    }
    least = {name: manifest["budget"]["least_feasible_ratio"] for name, manifest in budgets.items()}
    stricter, looser = max(least, key=least.__getitem__), min(least, key=least.__getitem__)
    between = (least["energy"] + least["matching"]) / 2
    run = chosen(checkpoint, world, tmp_path / "between", objective=looser, budget_ratio=between, beside=stricter)
    (other,) = run.manifest["beside"]
    assert other["objective"] == stricter
    assert other["relaxed"] is True
    assert other["ratio"] > least[stricter] > between
    assert budgets[looser]["beside"][0]["relaxed"] is False
    assert budgets[looser]["beside"][0]["ratio"] == 1.0


def test_an_alternative_without_a_selection_stops_nothing(
    checkpoint: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The relaxed budget holds for fractions of documents; whole ones may need more, by either error."""

    for number, error in enumerate((InfeasibleError("whole ones do not"), InfeasibleBudgetError(1.0, 2.0))):

        def only_energy(problem: SelectionProblem, error: InfeasibleError = error) -> Selection:
            if problem.objective == "matching":
                raise error
            return solve(problem)

        monkeypatch.setattr(base, "solve", only_energy)
        run = chosen(checkpoint, world, tmp_path / str(number), beside="matching")
        assert run.manifest["beside"] == [{"objective": "matching", "feasible": False}]
        assert len(run.selection.indices) == 15
        print_summary(run.manifest, run.out, Console())
        assert "--objective matching has no selection" in capsys.readouterr().out
        with pytest.raises(InputError, match="must"):
            chosen(checkpoint, world, tmp_path / f"asked {number}", objective="matching", relax_budget=True)


def test_what_was_said_of_features_is_said_again_where_they_are_reused(
    checkpoint: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow path is found while gradients are computed, and concerns everyone who uses them."""
    monkeypatch.setattr(hooks, "_kind", lambda module: ("", set()))
    first = chosen(checkpoint, world, tmp_path / "out")
    again = chosen(checkpoint, world, tmp_path / "out")
    slow = [doubt for doubt in first.manifest["warnings"] if "no fast path" in doubt]
    assert len(slow) == 1
    assert again.manifest["warnings"] == first.manifest["warnings"]
