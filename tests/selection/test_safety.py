"""Checks of a choice, from facts that are made up: each state of each, and what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.report.verdict import judge, moved
from direct_anneal.run.likeness import told_apart
from direct_anneal.run.safety import num_shared, safety_checks, safety_facts


class Documents:
    """A corpus of given tokens."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self._tokens = [np.array(one, dtype=np.uint32) for one in tokens]
        self.num_samples = len(tokens)

    def tokens(self, place: int) -> NDArray[np.uint32]:
        return self._tokens[place]


def domain(pool: int, selected: int) -> dict[str, int]:
    return {"pool": pool, "selected": selected, "pool_tokens": 10 * pool, "selected_tokens": 10 * selected}


def a_manifest(**changes: Any) -> dict[str, Any]:
    """Manifest of a choice that nothing speaks against."""
    return {
        "num_selected": 100,
        "objective": {"name": "matching", "known": 0.9},
        "spectrum": {"stiff_cost_in_sample": 1.2, "stiff_cost_held_out": 1.0},
        "budget": {"ratio": 1.0},
        "composition": {"domains": {"a": domain(500, 60), "b": domain(500, 40)}},
        "corpora": {"pool": {"documents": 1000, "incidents": {}, "quarantined": {"count": 0}}},
        "safety": {
            "in_validation": 0,
            "told_apart": 0.9,
            "by_its_own_measure": [],
            "repeats": {"pool": 0, "selected": 0},
            "loops": {"pool": {"looked_at": 1000, "found": 0}, "selected": {"looked_at": 100, "found": 0}},
        },
        "warnings": [],
    } | changes


def test_nothing_speaks_against_it() -> None:
    verdict = judge(a_manifest(), Path("runs/a"))
    assert [check.state for check in verdict.checks] == ["good"] * 8
    assert (verdict.state, verdict.sentence) == ("good", "No check found a reason against training on this choice.")
    assert verdict.steps[0].command == "direct-anneal compare --from runs/a"


SAFE = a_manifest()["safety"]


@pytest.mark.parametrize(
    ("changes", "name", "state", "says"),
    [
        ({"safety": SAFE | {"told_apart": 0.56}}, "Likeness", "look", "the pool is much like the target"),
        ({"safety": SAFE | {"in_validation": 3}}, "Overlap", "look", "3 documents of the pool are in the validation"),
        ({"safety": SAFE | {"repeats": {"pool": 9, "selected": 5}}}, "Duplicates", "look", "Deduplicate the pool"),
        ({"safety": SAFE | {"repeats": {"pool": 9, "selected": 50}}}, "Duplicates", "bad", "50 of 100 chosen"),
        (
            {"safety": SAFE | {"loops": SAFE["loops"] | {"selected": {"looked_at": 100, "found": 30}}}},
            "Damage",
            "bad",
            "30 of 100 chosen documents",
        ),
        (
            {"composition": {"domains": {"a": domain(70, 93), "b": domain(930, 7)}}},
            "Concentration",
            "look",
            "a, is 93% of the chosen tokens and 7% of the pool's",
        ),
        ({"safety": SAFE | {"by_its_own_measure": ["worse than random"]}}, "Gain", "bad", "worse than random"),
        (
            {"objective": {"name": "path", "path": {"left_out_gain": 0.4}, "damaged": {"loops": 400, "lists": 9}}},
            "Damage",
            "look",
            "excluded 400 of 1,000 documents",
        ),
        ({"composition": {"domains": {"a": domain(1000, 100)}}}, "Concentration", "unknown", "the pool has one domain"),
        (
            {"objective": {"name": "matching", "known": 0.12}},
            "Target",
            "look",
            "only 12% of the pool–validation difference exceeds sampling noise, so the selection is weakly targeted",
        ),
        ({"objective": {"name": "energy"}}, "Target", "unknown", "energy does not measure"),
        (
            {"objective": {"name": "path", "path": {"left_out_gain": 0.1, "left_out_gain_stderr": 0.09}}},
            "Target",
            "look",
            "within noise",
        ),
        (
            {"objective": {"name": "path", "path": {"left_out_gain": 0.4, "left_out_gain_stderr": 0.02}}},
            "Target",
            "good",
            "by 0.400 ± 0.020 nats",
        ),
        (
            {"spectrum": {"stiff_cost_in_sample": 4.0, "stiff_cost_held_out": 1.0}},
            "Curvature",
            "look",
            "the spectrum is overfitted",
        ),
        (
            {
                "corpora": {
                    "pool": {"documents": 60, "incidents": {"bad-line": {"count": 40}}, "quarantined": {"count": 0}}
                }
            },
            "Reading",
            "look",
            "40 of 100 records",
        ),
    ],
)
def test_each_check(changes: dict[str, Any], name: str, state: str, says: str) -> None:
    verdict = judge(a_manifest(**changes), Path("out"))
    (check,) = [check for check in verdict.checks if check.name == name]
    assert check.state == state
    assert says in check.text
    others = [other.state for other in verdict.checks if other.name != name]
    assert set(others) == {"good"}
    if state in ("look", "bad"):
        assert verdict.state == state
        assert name.lower() in verdict.sentence


def test_an_overfitted_spectrum_counts_only_where_the_choice_depends_on_it() -> None:
    overfitted = {"stiff_cost_in_sample": 19.0, "stiff_cost_held_out": 1.0}

    def states(**changes: Any) -> dict[str, str]:
        manifest = a_manifest(spectrum=overfitted, **changes)
        return {check.name: check.state for check in safety_checks(manifest)}

    assert states()["Curvature"] == "look"
    assert states(budget=None, objective={"name": "energy", "filter": "flat"})["Curvature"] == "look"
    assert "Curvature" not in states(budget=None)
    assert "Curvature" not in states(budget={"ratio": None}, objective={"name": "matching", "filter": "newton"})


def test_a_run_of_before_has_fewer_checks() -> None:
    old = a_manifest()
    del old["safety"]
    assert [check.name for check in safety_checks(old)] == ["Concentration", "Target", "Curvature"]


def test_facts_by_their_definition() -> None:
    loop, plain = [1, 2, 3, 4] * 20, list(range(80))
    pool: Any = Documents([plain, loop, plain, [5, 6], plain])
    validation: Any = Documents([[5, 6], [7, 8]])
    shared = num_shared(pool, validation)
    selected = np.array([True, True, True, False, False])
    facts = safety_facts(pool, selected, in_validation=shared, told_apart=None, by_its_own_measure=[])
    assert facts == {
        "in_validation": 1,
        "told_apart": None,
        "by_its_own_measure": [],
        "repeats": {"pool": 2, "selected": 1},
        "loops": {"pool": {"looked_at": 5, "found": 1}, "selected": {"looked_at": 3, "found": 1}},
    }


def test_documents_are_told_apart_as_by_a_naive_classifier() -> None:
    """Counts, odds, means and pairs by loops."""
    rng = np.random.default_rng(0)
    corpora = [[rng.integers(low, low + 30, 12).tolist() for _ in range(60)] for low in (0, 5)]
    found = told_apart(*(Documents(documents) for documents in corpora))  # type: ignore[arg-type]

    def words(document: list[int]) -> set[Any]:
        return {*document, *pairwise(document)}

    areas = []
    for tried in (0, 1):
        counts = [Counter(w for d in documents[1 - tried :: 2] for w in words(d)) for documents in corpora]
        every = {w for documents in corpora for d in documents for w in words(d)}
        total = [sum(count[w] + 0.5 for w in every) for count in counts]
        odds = {w: np.log((counts[1][w] + 0.5) / total[1]) - np.log((counts[0][w] + 0.5) / total[0]) for w in every}
        lower, higher = ([np.mean([odds[w] for w in words(d)]) for d in documents[tried::2]] for documents in corpora)
        areas.append(np.mean([(b > a) + 0.5 * (b == a) for a in lower for b in higher]))
    assert found == pytest.approx(np.mean(areas), abs=1e-12)
    assert 0.6 < found < 1.0


def test_a_pool_that_is_the_target_is_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    pool, validation, other = (
        Documents([rng.integers(low, low + 50, 40).tolist() for _ in range(count)])
        for low, count in ((0, 400), (0, 200), (50, 49))
    )
    assert told_apart(pool, validation) == pytest.approx(0.5, abs=0.08)  # type: ignore[arg-type]
    assert told_apart(pool, other) is None  # type: ignore[arg-type]


def test_domains_that_moved_most() -> None:
    domains = {"same": domain(50, 5), "less": domain(30, 0), "more": domain(20, 5)}
    assert [name for name, *_ in moved(domains, 2)] == ["more", "less"]
