"""Objectives on the descent path, from inputs made by hand: against their formulas and naive ranks.

N pool, M validation samples, k paths, R sketch size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from direct_anneal.config.objective import beside_of, objective_of
from direct_anneal.curvature import SecondMoment, energy_share, estimate
from direct_anneal.errors import InputError
from direct_anneal.objectives import Built, Gradients, Inputs, SelectionObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.path import PathLosses

Float = NDArray[np.float64]

N, M, R, K = 40, 9, 6, 8


def losses(k: int = 1, seed: int = 0) -> PathLosses:
    rng = np.random.default_rng(seed)
    names = tuple(f"path-{j}" for j in range(k))
    ids = pa.array([str(i) for i in range(N)])
    ends = rng.normal(3, 1, size=(N, k))
    none = np.zeros(N)  # of these documents none looks damaged
    signs: dict[str, Any] = {"repeated": none, "common": none, "order": none + 1.0}
    return PathLosses(ids=ids, num_tokens=np.full(N, 9.0), start=rng.normal(4, 1, N), ends=ends, names=names, **signs)


def inputs_of(
    path: PathLosses, gradients: dict[str, Gradients] | None = None, told_apart: float | None = None, **size: Any
) -> Inputs:
    z = None if gradients is None else gradients["validation"].dense
    loaders: dict[str, Any] = {"path": lambda _: path}
    if gradients is not None:
        loaders["gradients"] = gradients.__getitem__
    return Inputs(
        **(size or {"num_selected": K, "num_tokens": np.full(N, 9)}),
        loaders=loaders,
        estimate=None if z is None else lambda: estimate(SecondMoment(z), M).split(energy_share(0.9)),
        likeness=lambda: told_apart,
    )


def objective(name: str, **options: Any) -> SelectionObjective:
    found = objective_of(name, {}, options, "empirical-fisher")
    assert isinstance(found, SelectionObjective)
    return found


def solved(name: str, inputs: Inputs, **options: Any) -> tuple[Built, set[int]]:
    built, selection, _ = solve_within(objective(name, **options), objective(name, **options).build(inputs), relax=None)
    return built, set(selection.indices.tolist())


def drawn_gradients() -> dict[str, Gradients]:
    rng = np.random.default_rng(5)
    rows, values = rng.normal(size=(N, R)), rng.normal(size=(M, R))
    norms = np.linalg.norm(rows, axis=1)
    return {"pool": Gradients([rows / norms[:, None]], norms), "validation": Gradients([], norms[:0], values)}


def test_path_alone_takes_the_largest_drops_and_asks_for_nothing_else() -> None:
    path = losses()
    built, chosen = solved("path", inputs_of(path))
    drops = [float(s - e) for s, e in zip(path.start, path.ends[:, 0], strict=True)]
    assert chosen == set(sorted(range(N), key=lambda i: -drops[i])[:K])
    np.testing.assert_array_equal(built.columns["path"], drops)
    assert objective("path").needs == {"path"}


def test_by_tokens_each_token_counts() -> None:
    path, tokens = losses(), np.random.default_rng(2).integers(5, 90, N)
    _, chosen = solved("path", inputs_of(path, token_budget=400, num_tokens=tokens))
    total = sum(path.drops[i, 0] * tokens[i] for i in chosen)
    by_drop: set[int] = set()
    for i in np.argsort(-path.drops[:, 0]):
        if sum(tokens[list(by_drop)]) + tokens[i] <= 400:
            by_drop.add(int(i))
    assert sum(tokens[list(chosen)]) <= 400
    assert total >= sum(path.drops[i, 0] * tokens[i] for i in by_drop) - 1e-9


def test_no_part_gets_less_than_its_floor() -> None:
    drawn = losses(3, seed=4)
    # Parts that have nothing in common, of which the first weighs most.
    path = replace(drawn, start=np.zeros(N), ends=(drawn.ends - 3.0) * [5.0, 1.0, 1.0])
    _, free = solved("path", inputs_of(path))
    _, held = solved("path", inputs_of(path), part_floor=0.5)
    for j in range(3):
        drops = path.drops[:, j]
        average, best = K * drops.mean(), np.sort(drops)[-K:].sum()
        assert sum(drops[list(held)]) >= average + 0.5 * (best - average) - 1e-9
    assert held != free
    value = {name: path.drops.mean(axis=1)[list(chosen)].sum() for name, chosen in (("free", free), ("held", held))}
    assert value["held"] <= value["free"]
    with pytest.raises(InputError, match="the floor of progress along path-"):
        solved("path", inputs_of(path), part_floor=0.99)


def test_floors_do_not_count_on_damaged_documents() -> None:
    """Those whose drops are the largest of all cannot be chosen."""
    drawn = losses(2, seed=4)
    damaged = np.arange(N) < K
    ends = drawn.ends - 50.0 * damaged[:, None]
    path = replace(drawn, ends=ends, repeated=np.where(damaged, 1.0, 0.0))
    _, held = solved("path", inputs_of(path), part_floor=0.5)
    assert not held & set(np.flatnonzero(damaged).tolist())
    for j in range(2):
        drops = path.drops[:, j]
        kept = drops[~damaged]
        average, best = K * kept.mean(), np.sort(kept)[-K:].sum()
        assert sum(drops[list(held)]) >= average + 0.5 * (best - average) - 1e-9


def restrained(seed: int = 7) -> PathLosses:
    """The same with three stiff directions."""
    rng = np.random.default_rng(seed)
    return replace(
        losses(),
        restrained=rng.normal(3, 1, size=(N, 1)),
        slopes=rng.normal(size=(N, 3)),
        described={"restrained": [5.0, 2.0, 1.0]},
    )


@pytest.mark.parametrize("bands", [1, 2])
def test_a_stiff_budget_on_exact_costs(bands: int) -> None:
    """Σ_i w_i A_ib ≤ ratio · mean A_b · K for each band, A_ib = Σ_{j in b} λ_j ⟨v_j, g_i⟩², against all vertices."""
    path = restrained()
    slopes, eigenvalues = path.slopes, path.described["restrained"]
    assert slopes is not None
    single = [[eigenvalues[j] * slopes[i, j] ** 2 for j in range(3)] for i in range(N)]
    groups = [[0, 1, 2]] if bands == 1 else [[0], [1, 2]]
    costs = np.array([[sum(row[j] for j in group) for group in groups] for row in single])
    _, free = solved("path", inputs_of(path), num_restrained=3)
    built, held = solved("path", inputs_of(path), num_restrained=3, budget_ratio=0.4, bands=bands)
    np.testing.assert_allclose(np.reshape(built.problem.stiff_cost, (N, -1)), costs, rtol=1e-12)
    assert (costs[list(held)].sum(axis=0) <= 0.4 * costs.mean(axis=0) * K * (1 + 1e-12)).all()
    assert held != free
    drops = path.drops[:, 0]
    if bands == 1:  # no exchange of one document for another is better and still within the budget
        total = costs[list(held), 0].sum()
        for out in held:
            for new in set(range(N)) - held:
                within = total - costs[out, 0] + costs[new, 0] <= 0.4 * costs[:, 0].mean() * K
                assert not within or drops[new] <= drops[out] + 1e-12


def test_by_tokens_costs_count_each_token() -> None:
    path, tokens = restrained(), np.random.default_rng(2).integers(5, 90, N)
    built, _ = solved("path", inputs_of(path, token_budget=400, num_tokens=tokens), num_restrained=3)
    assert path.slopes is not None
    wanted = (path.slopes**2 @ [5.0, 2.0, 1.0]) * tokens / tokens.mean()
    np.testing.assert_allclose(built.problem.stiff_cost, wanted)


def test_progress_along_the_restrained_path_and_in_stiff_directions() -> None:
    path = restrained()
    built, chosen = solved("path", inputs_of(path), num_restrained=3, along="restrained")
    assert path.restrained is not None
    own = path.start - path.restrained[:, 0]
    assert chosen == set(sorted(range(N), key=lambda i: -own[i])[:K])
    np.testing.assert_array_equal(built.columns["path"], path.drops[:, 0])
    np.testing.assert_array_equal(built.columns["path_restrained"], own)
    np.testing.assert_allclose(built.columns["path_stiff"], path.restrained[:, 0] - path.ends[:, 0])


def test_paths_that_were_walked_otherwise_are_refused() -> None:
    with pytest.raises(InputError, match="num_restrained must be as it was where losses along the path were computed"):
        solved("path", inputs_of(losses()), num_restrained=3)
    walked = replace(losses(), described={"config": {"paths": "one", "max_passes": 3.0}})
    with pytest.raises(InputError, match="paths must be one, as the losses were computed with, got domains"):
        solved("path", inputs_of(walked), paths="domains")
    with pytest.raises(InputError, match="bands must leave a stiff direction to each, but 4 are asked for and 3"):
        solved("path", inputs_of(restrained()), num_restrained=3, bands=4)


def test_beside_another_objective_its_budget_is_not_the_paths() -> None:
    found = beside_of("path", {"budget_ratio": 0.1, "bands": 2, "noise": None}, "empirical-fisher")
    assert found.options()["budget_ratio"] == "none"


def test_blend_is_the_sum_of_naive_ranks() -> None:
    path, gradients = losses(), drawn_gradients()
    built, chosen = solved("blend", inputs_of(path, gradients), descent_weight=0.7, ngram_weight=0.0, damping=0.1)
    x, target = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (gradients[r].dense for r in gradients))
    assert list(gradients) == ["pool", "validation"]
    curvature = sum(np.outer(row, row) for row in x) / N / 2 + sum(np.outer(row, row) for row in target) / M / 2
    damped = curvature + 0.1 * np.linalg.eigvalsh(curvature)[-1] * np.eye(R)
    descent = [float(row @ np.linalg.inv(damped) @ target.mean(axis=0)) for row in x]
    np.testing.assert_allclose(built.columns["descent"], descent, rtol=1e-6)

    def rank(values: Any, i: int) -> float:
        return 1.0 + sum(v < values[i] for v in values)

    score = [(rank(path.drops[:, 0], i) + 0.7 * rank(descent, i)) / N for i in range(N)]
    assert chosen == set(sorted(range(N), key=lambda i: -score[i])[:K])


def test_blend_is_matching_where_the_pool_has_the_targets_own_kind_of_text() -> None:
    path, gradients = losses(), drawn_gradients()
    options = {"ngram_weight": 0.0, "damping": 0.1, "budget_ratio": 0.9}
    by_ranks, by_matching = (solved(name, inputs_of(path, gradients), **options)[1] for name in ("blend", "matching"))
    assert by_ranks != by_matching
    for told_apart, limit, expected in (
        (None, 0.97, by_ranks),
        (0.97, 0.97, by_ranks),
        (0.5, 0.0, by_ranks),
        (0.96, 0.97, by_matching),
    ):
        built, chosen = solved("blend", inputs_of(path, gradients, told_apart), **options, matching_below=limit)
        assert chosen == expected
        assert built.facts.get("chosen_by") == ("matching" if expected is by_matching else None)
    assert built.facts["meaning"] == objective("matching").meaning
    assert built.facts["told_apart"] == 0.96
    assert built.remarks[-1].startswith("pool: there is text of the target's own kind")
    assert "path" not in built.columns, "which need not have been walked"


@pytest.mark.parametrize(
    ("told_apart", "below", "is_less"), [(0.5, 0.97, True), (0.97, 0.97, False), (0.5, 0.0, False), (None, 0.97, False)]
)
def test_where_matching_chooses_no_path_is_needed(told_apart: float | None, below: float, is_less: bool) -> None:
    asked = objective("blend", matching_below=below)
    assert asked.needs == {"path", "gradients", "ngrams", "signs"}
    expected = objective("matching").needs if is_less else asked.needs
    assert asked.needs_where(lambda: told_apart) == expected


def test_blend_keeps_a_stiff_budget() -> None:
    gradients = drawn_gradients()
    built, chosen = solved("blend", inputs_of(losses(), gradients), budget_ratio=0.5, ngram_weight=0.0)
    cost = np.asarray(built.problem.stiff_cost)
    assert cost[list(chosen)].sum() <= 0.5 * cost.mean() * K * (1 + 1e-12)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("path", {"part_floor": 1.0}, "part_floor in objective_options must be at least 0 and below 1"),
        (
            "path",
            {"budget_ratio": 1.0},
            "budget_ratio in objective_options must be none where no directions are stiff, got 1.0",
        ),
        ("path", {"along": "restrained"}, "along in objective_options must be plain where no directions are stiff"),
        ("path", {"num_restrained": 2, "bands": 0}, "bands in objective_options must be at least 1"),
        ("blend", {"descent_weight": 0.0}, "descent_weight in objective_options must be above 0"),
        ("blend", {"matching_below": 1.5}, r"matching_below in objective_options must be in \[0, 1\]"),
        ("path", {"filter": "flat"}, "filter in objective_options must be left out with objective path"),
        ("blend", {"paths": "none"}, "paths in objective_options must be one, domains or clusters for blend, got none"),
    ],
)
def test_what_they_do_not_know_is_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        objective(name, **options)
