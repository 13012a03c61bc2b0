"""Selections that mean nothing are told; those that mean something are not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from direct_anneal.run import checks
from direct_anneal.solver import Selection, SelectionProblem, solve

GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.normal(size=(40, 6)) + 0.5


def problem(objective: str, rows: NDArray[np.float64] = ROWS, count: int = 8) -> SelectionProblem:
    target = None if objective == "energy" else (count if objective == "matching" else 1) * np.eye(6)[0]
    return SelectionProblem(rows, np.zeros(len(rows)), num_selected=count, objective=objective, target=target)  # type: ignore[arg-type]


def value(asked: SelectionProblem, indices: NDArray[np.intp]) -> float:
    total = np.asarray(asked.features)[indices].sum(0)
    target = np.zeros(6) if asked.target is None else np.asarray(asked.target)
    return {
        "energy": total @ total,
        "descent": total @ target,
        "matching": target @ target - (total - target) @ (total - target),
    }[asked.objective]


def of(asked: SelectionProblem, indices: NDArray[np.intp]) -> Selection:
    found = solve(asked)
    return Selection(**{**vars(found), "indices": indices, "objective": value(asked, indices)})


@pytest.mark.parametrize("objective", ["energy", "descent", "matching"])
def test_the_best_is_better_than_chance_and_the_worst_is_told(objective: str) -> None:
    asked = problem(objective)
    found = solve(asked)
    assert found.objective == pytest.approx(value(asked, found.indices))
    assert not any("random" in told for told in checks.of_measure(found, asked))
    order = np.argsort(ROWS @ (ROWS.mean(0) if asked.target is None else np.asarray(asked.target)))
    draws = [value(asked, np.random.default_rng(seed).permutation(40)[:8]) for seed in range(2000)]
    (told,) = [told for told in checks.of_measure(of(asked, order[:8]), asked) if "random" in told]
    assert "worse than random documents of the same size" in told
    mean = float(told.split("(")[2].split()[0])
    # Four standard errors of the mean of so many draws.
    assert mean == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / np.sqrt(len(draws)) + 1e-3 * abs(mean))


def test_where_everything_is_nearer_that_is_told() -> None:
    rows = np.tile(np.eye(6)[0] * 0.2, (40, 1))
    asked = problem("matching", rows)  # a target of 8, which all 40 reach together
    (told,) = checks.of_measure(solve(asked), asked)
    assert "worse than the whole pool" in told


def samples(domains: list[str], tokens: list[int]) -> pa.Table:
    return pa.table({"domain": domains, "num_tokens": tokens})


def chosen(*indices: int) -> Selection:
    return of(problem("energy"), np.array(indices))


@pytest.mark.parametrize(
    ("domains", "indices", "says"),
    [
        (["a", "b"] * 20, range(8), None),
        (["a", "b"] * 20, range(36), "90% of the pool's tokens"),
    ],
)
def test_a_small_pool(domains: list[str], indices: range, says: str | None) -> None:
    told = checks.of_size(chosen(*indices), samples(domains, [10] * 40))
    assert told == [] if says is None else any(says in one for one in told)
