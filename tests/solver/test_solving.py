"""Selections against brute force, against the published algorithm, and against their own evidence.

N samples, K selected, R sketch size, B tokens, τ budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from direct_anneal.solver import FeatureMatrix, InfeasibleBudgetError, Selection, SelectionProblem, matrix, solve
from direct_anneal.solver.lp import OneBudget
from reference import algorithm_2

Float = NDArray[np.float64]
Objective = Literal["energy", "descent", "matching"]

WITHIN = 1 + 1e-12  # budgets are met up to this factor, as `Selection` says
OBJECTIVES: list[Objective] = ["energy", "descent", "matching"]

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)


@dataclass(frozen=True)
class Instance:
    """A problem's arrays, so that tests can permute, duplicate and recompute them."""

    features: Float  # (N, R)
    cost: Float  # (N,)
    budget: float
    objective: Objective
    target: Float  # (R,), for all but energy
    num_selected: int | None = None
    tokens: NDArray[np.int64] | None = None
    token_budget: int | None = None
    ranks: NDArray[np.int64] | None = None

    def problem(self, permutation: NDArray[np.intp] | None = None) -> SelectionProblem:
        order = np.arange(len(self.cost)) if permutation is None else permutation
        return SelectionProblem(
            self.features[order],
            self.cost[order],
            num_selected=self.num_selected,
            budget=self.budget,
            objective=self.objective,
            target=None if self.objective == "energy" else self.target,
            num_tokens=None if self.tokens is None else self.tokens[order],
            token_budget=self.token_budget,
            tie_order=None if self.ranks is None else self.ranks[order],
        )

    def values(self, selections: NDArray[np.bool_]) -> Float:
        """The objective of each row of selections, shape (C, N)."""
        sums = selections @ self.features
        if self.objective == "matching":
            return np.sum(self.target**2) - np.sum((sums - self.target) ** 2, axis=1)
        return np.sum(sums**2, axis=1) if self.objective == "energy" else sums @ self.target

    def allowed_selections(self) -> NDArray[np.bool_]:
        """Every selection within size and budget, shape (C, N)."""
        num_samples = len(self.cost)
        if self.num_selected is not None:
            picks = itertools.combinations(range(num_samples), self.num_selected)
            selections = np.array([np.isin(np.arange(num_samples), pick) for pick in picks])
            return selections[selections @ self.cost <= self.budget * WITHIN]
        selections = (np.arange(2**num_samples)[:, None] >> np.arange(num_samples)) % 2 == 1
        fits = (selections @ self.tokens <= self.token_budget) & (selections @ self.cost <= self.budget * WITHIN)
        return selections[fits]


def random_instance(
    rng: np.random.Generator,
    num_samples: int,
    num_features: int,
    objective: Objective,
    *,
    tokens: bool = False,
    integers: bool = False,
) -> Instance:
    """General position or small integers (many ties), the budget between the least feasible and the pool's mean."""
    shape = (num_samples, num_features)
    features = rng.integers(-2, 3, shape).astype(np.float64) if integers else rng.normal(size=shape)
    cost = rng.integers(0, 4, num_samples).astype(np.float64) if integers else np.exp(rng.normal(size=num_samples))
    target = rng.normal(size=num_features) * (4.0 if objective == "matching" else 1.0)  # within reach, or beyond
    if not tokens:
        num_selected = int(rng.integers(1, min(num_samples, 6) + 1))
        least, usual = np.sort(cost)[:num_selected].sum(), cost.mean() * num_selected
        budget = float(least + rng.random() * (usual - least))
        return Instance(features, cost, budget, objective, target, num_selected)
    lengths = rng.integers(1, 9, num_samples)
    token_budget = int(rng.integers(lengths.max(), lengths.sum() + 1))  # any one sample fits
    size = OneBudget(
        SelectionProblem(features, cost, budget=np.inf, num_tokens=lengths, token_budget=token_budget)
    ).least_cost
    budget = float(max(cost.max(), size + rng.random() * (cost.sum() - size)))  # and can be paid for
    return Instance(features, cost, budget, objective, target, None, lengths, token_budget)


def instances(
    count: int, objective: Objective, *, tokens: bool = False, seed: int = 0, num_samples: int = 12
) -> Iterator[Instance]:
    """A fixed batch of up to `num_samples` samples; every third one is of integers."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield random_instance(
            rng,
            int(rng.integers(2, num_samples + 1)),
            int(rng.integers(1, 6)),
            objective,
            tokens=tokens,
            integers=number % 3 == 0,
        )


def as_mask(selection: Selection) -> NDArray[np.bool_]:
    chosen = np.zeros(len(selection.weights), dtype=np.bool_)
    chosen[selection.indices] = True
    return chosen


def assert_evidence_is_true(instance: Instance, selection: Selection) -> None:
    """Everything that a selection reports, recomputed from the arrays."""
    chosen = as_mask(selection)
    assert chosen.sum() == len(selection.indices)  # none twice
    if instance.num_selected is not None:
        assert chosen.sum() == instance.num_selected
    else:
        assert instance.tokens[chosen].sum() <= instance.token_budget
    assert selection.budget == instance.budget
    assert selection.budget_used == math.fsum(instance.cost[chosen])
    assert selection.budget_used <= instance.budget * WITHIN

    # Sums of at most 40 products of order 1 to 10, in another order.
    total = instance.features[chosen].sum(axis=0)
    (value,) = instance.values(chosen[None])
    # Of matching a difference of squares, each up to some thousands.
    assert selection.objective == pytest.approx(
        value, rel=1e-12, abs=1e-12 if instance.objective != "matching" else 1e-9
    )
    assert selection.objective <= selection.bound
    direction = {"energy": total, "descent": instance.target, "matching": instance.target - total}[instance.objective]
    if np.linalg.norm(direction) > 0:
        expected = instance.features @ direction / np.linalg.norm(direction)
        np.testing.assert_allclose(selection.scores, expected, atol=1e-12)
    size = np.ones(len(chosen)) if instance.tokens is None else instance.tokens
    assert np.all(np.diff((selection.scores / size)[selection.indices]) <= 0)  # strongest first

    capacity = instance.num_selected if instance.tokens is None else instance.token_budget
    weights = selection.weights
    assert weights.shape == selection.scores.shape == (len(chosen),)
    assert np.all((weights >= 0) & (weights <= 1))
    assert weights @ size == pytest.approx(capacity, rel=1e-12)
    assert weights @ instance.cost <= instance.budget * (1 + 2e-12)  # 1e-12, and as much for another order

    if selection.status == "optimal":
        assert selection.objective == pytest.approx(selection.bound, rel=1e-9)  # what the status means
    else:
        assert selection.status == ("stationary" if instance.objective == "energy" else "rounded")
    if instance.objective == "matching":
        assert selection.stats["relaxed"] <= selection.bound
    if instance.objective == "energy":
        starts = selection.stats["starts"]
        assert max(start["final"] for start in starts) == pytest.approx(selection.objective, rel=1e-12, abs=1e-12)
        assert all(start["final"] >= start["rounded"] * (1 - 1e-12) for start in starts)
        assert all(start["relaxed"] <= selection.bound * (1 + 1e-9) for start in starts)  # μ τ 1e-12, and rounding


# --- brute force ---


def test_energy_matches_brute_force_on_at_least_nine_in_ten() -> None:
    matched = []
    for instance in instances(80, "energy"):
        best = instance.values(instance.allowed_selections()).max()
        selection = solve(instance.problem())
        assert_evidence_is_true(instance, selection)
        # Sums of squares in another order; integers may have an optimum of zero.
        assert selection.objective <= best * (1 + 1e-12) + 1e-12
        assert selection.bound >= best * (1 - 1e-12)
        matched.append(selection.objective >= best * (1 - 1e-12))
    assert np.mean(matched) >= 0.9  # a local method: most, not all


def test_descent_matches_brute_force_always() -> None:
    for instance in instances(80, "descent"):
        best = instance.values(instance.allowed_selections()).max()
        selection = solve(instance.problem())
        assert_evidence_is_true(instance, selection)
        # Gains are sums of at most 5 products of order 1 to 10; HiGHS settles them to 1e-10 of their spread.
        assert selection.objective == pytest.approx(best, abs=1e-8)
        assert best - 1e-8 <= selection.bound <= selection.stats["relaxed_bound"] + 1e-10
        assert (selection.status, selection.stats["proven"]) == ("optimal", True)


def test_matching_matches_brute_force_on_at_least_nine_in_ten() -> None:
    matched = []
    for instance in instances(80, "matching"):
        best = instance.values(instance.allowed_selections()).max()
        selection = solve(instance.problem())
        assert_evidence_is_true(instance, selection)
        assert selection.objective <= best + 1e-9  # squares of up to some thousands, in another order
        assert selection.bound >= best - 1e-9
        matched.append(selection.objective >= best - 1e-9)
    assert np.mean(matched) >= 0.9  # whole samples by swaps: most, not all


@pytest.mark.parametrize("tokens", [False, True])
def test_matching_is_relaxed_to_the_gap_it_reports(tokens: bool) -> None:
    """Against projected gradients over the same weights, by SLSQP."""
    for instance in instances(20, "matching", tokens=tokens, seed=3):
        size = np.ones(len(instance.cost)) if instance.tokens is None else instance.tokens.astype(np.float64)
        capacity = instance.num_selected if instance.tokens is None else instance.token_budget
        selection = solve(instance.problem())
        reached = selection.stats["relaxed"]
        assert reached == pytest.approx(instance.values(selection.weights[None])[0], rel=1e-9, abs=1e-9)
        optimum = minimize(
            lambda w, i=instance: -i.values(w[None])[0],
            selection.weights,
            jac=lambda w, i=instance: 2 * i.features @ (w @ i.features - i.target),
            bounds=[(0.0, 1.0)] * len(size),
            constraints=[
                {"type": "eq", "fun": lambda w, s=size, c=capacity: w @ s - c},
                {"type": "ineq", "fun": lambda w, i=instance: i.budget - w @ i.cost},
            ],
            method="SLSQP",
        )
        # Frank and Wolfe stop at a gap of 1e-3; SLSQP goes on to 1e-6 of values up to some thousands.
        assert reached >= -optimum.fun - 1e-3 * abs(reached) - 1e-3
        assert selection.bound >= -optimum.fun - 1e-3


def test_matching_far_away_is_descent() -> None:
    """Twice the target's length adds to every gain in proportion, and to what the sum costs not at all."""
    rng = np.random.default_rng(7)
    for _ in range(10):
        drawn = random_instance(rng, 40, 5, "descent")
        instance = Instance(**vars(drawn) | {"budget": np.inf})  # else the integer program of descent is ahead
        far = Instance(**vars(instance) | {"objective": "matching", "target": 1e7 * instance.target})
        first, second = solve(instance.problem()), solve(far.problem())
        gain = instance.features @ instance.target
        assert gain[second.indices].sum() == pytest.approx(gain[first.indices].sum(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_within_tokens_and_budget_exceeds_the_bound(objective: Objective) -> None:
    for instance in instances(60, objective, tokens=True, num_samples=9):
        best = instance.values(instance.allowed_selections()).max()
        selection = solve(instance.problem())
        assert selection.bound >= best - 1e-10  # values of order 1 to 1e3, in another order


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_token_selections_report_the_truth(objective: Objective) -> None:
    for instance in instances(60, objective, tokens=True, num_samples=9):
        assert_evidence_is_true(instance, solve(instance.problem()))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_further_sample_fits_the_token_budget(objective: Objective) -> None:
    for instance in instances(60, objective, tokens=True, num_samples=9):
        chosen = as_mask(solve(instance.problem()))
        tokens_left = instance.token_budget - instance.tokens[chosen].sum()
        budget_left = instance.budget - instance.cost[chosen].sum()
        assert not np.any(~chosen & (instance.tokens <= tokens_left) & (instance.cost <= budget_left))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_single_sample_affordable_whole(objective: Objective) -> None:
    """Half of the long free sample meets both limits, but no sample does."""
    instance = Instance(
        features=np.array([[1.0, 2.0], [3.0, 4.0]]),
        cost=np.array([1.0, 0.0]),
        budget=0.9,
        objective=objective,
        target=np.ones(2),
        tokens=np.array([1, 4]),
        token_budget=2,
    )
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(instance.problem())
    assert caught.value.least_feasible == 1.0  # the short sample's cost; the long one does not fit


# --- the published algorithm ---


def test_energy_is_at_least_what_the_published_algorithm_finds_within_budget() -> None:
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(6):
        num_selected = int(rng.integers(2, 7))
        features, cost = rng.normal(size=(12, 4)), rng.random(12)
        least, usual = np.sort(cost)[:num_selected].sum(), cost.mean() * num_selected
        budget = float(least + rng.random() * (usual - least))
        (answer,) = algorithm_2(features, cost, num_selected, budget=budget)
        if not answer.breaks_budget:
            compared += 1
            problem = SelectionProblem(features, cost, num_selected=num_selected, budget=budget)
            assert solve(problem).objective >= answer.objective * (1 - 1e-12)  # sums in another order
    assert compared >= 3  # the rounding of the published algorithm breaks the budget on some


# --- invariants ---


@repeatable
@given(
    seed=st.integers(0, 2**32 - 1),
    num_samples=st.integers(1, 30),
    num_features=st.integers(1, 8),
    objective=st.sampled_from(OBJECTIVES),
    integers=st.booleans(),
)
def test_every_selection_keeps_its_promises(
    seed: int, num_samples: int, num_features: int, objective: Objective, integers: bool
) -> None:
    instance = random_instance(np.random.default_rng(seed), num_samples, num_features, objective, integers=integers)
    assert_evidence_is_true(instance, solve(instance.problem()))


def test_a_larger_budget_never_lowers_the_descent_bound() -> None:
    instance = random_instance(np.random.default_rng(2), 30, 4, "descent")
    budgets = np.linspace(instance.budget, instance.cost.sum(), 20)
    bounds = [solve(Instance(**vars(instance) | {"budget": float(budget)}).problem()).bound for budget in budgets]
    assert np.all(np.diff(bounds) >= -1e-10)  # sums of order 1 to 10


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_units_of_cost_do_not_matter(objective: Objective) -> None:
    instance = random_instance(np.random.default_rng(3), 40, 5, objective)
    scaled = Instance(**vars(instance) | {"cost": instance.cost * 2**-40, "budget": instance.budget * 2**-40})
    first, second = solve(instance.problem()), solve(scaled.problem())  # a power of two: nothing rounds differently
    assert np.array_equal(first.indices, second.indices)
    assert first.objective == second.objective
    assert first.budget_used * 2**-40 == second.budget_used


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_solving_twice_gives_the_same_bytes(objective: Objective, tokens: bool) -> None:
    instance = random_instance(np.random.default_rng(4), 200, 6, objective, tokens=tokens)
    first, second = solve(instance.problem()), solve(instance.problem())
    for name in ("indices", "weights", "scores"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert (first.objective, first.bound, first.status) == (second.objective, second.bound, second.status)
    assert first.stats == second.stats


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_permuting_the_pool_permutes_the_selection(objective: Objective) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        instance = random_instance(rng, 40, 5, objective)
        permutation = rng.permutation(40)
        first, second = solve(instance.problem()), solve(instance.problem(permutation))
        assert np.array_equal(first.indices, permutation[second.indices])
        # Scores and bound are sums in another order.
        np.testing.assert_allclose(first.scores[permutation], second.scores, atol=1e-12)
        assert first.bound == pytest.approx(second.bound, rel=1e-10)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_among_duplicates_the_rank_decides_whatever_the_order_of_the_pool(objective: Objective, integers: bool) -> None:
    """Every sample occurs about three times: who is chosen among equals is a matter of `tie_order` alone."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        instance = random_instance(rng, 60, 7, objective, integers=integers)
        copies = rng.integers(0, 20, 60)
        duplicated = Instance(
            **vars(instance)
            | {
                "features": instance.features[copies],
                "cost": instance.cost[copies],
                "num_selected": 15,
                "budget": float(15 * instance.cost[copies].mean()),
                "ranks": rng.permutation(60),
            }
        )
        permutation = rng.permutation(60)
        first, second = solve(duplicated.problem()), solve(duplicated.problem(permutation))
        assert np.array_equal(first.indices, permutation[second.indices])


def test_swaps_keep_the_lower_rank_among_equals() -> None:
    """Samples 0 and 3 are the same and both chosen at first; the swap for 1 must take out the one of higher rank."""
    instance = Instance(
        features=np.array([[2.0, -1.0], [3.0, 3.0], [-2.0, -3.0], [2.0, -1.0]]),
        cost=np.array([2.0, 1.0, 3.0, 2.0]),
        budget=6.0,
        objective="energy",
        target=np.ones(2),
        num_selected=2,
        ranks=np.array([3, 2, 1, 0]),
    )
    for order in itertools.permutations(range(4)):
        permutation = np.array(order)
        assert sorted(permutation[solve(instance.problem(permutation)).indices]) == [1, 3]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_rows_score_equally_wherever_they_stand(objective: Objective) -> None:
    """A matrix product may round the same row differently at another position: ranks must decide all the same."""
    rng = np.random.default_rng(12)
    for _ in range(20):
        ranks = rng.permutation(7)
        instance = Instance(
            features=np.tile(rng.normal(size=16), (7, 1)),
            cost=np.ones(7),
            budget=3.0,
            objective=objective,
            target=rng.normal(size=16),
            num_selected=3,
            ranks=ranks,
        )
        assert ranks[solve(instance.problem()).indices].tolist() == [0, 1, 2]


# --- features on disk ---


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_memory_mapped_blocks_equal_one_array_of_the_same_numbers(
    objective: Objective, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read for every pass, and looked through in float32, too."""
    monkeypatch.setattr(matrix, "_KEPT", kept)
    instance = random_instance(np.random.default_rng(8), 120, 6, objective)
    halves = instance.features.astype(np.float16)
    blocks = []
    for number, rows in enumerate(np.split(halves, [50, 53])):
        np.save(tmp_path / f"{number}.npy", rows)
        blocks.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    whole = instance.problem()
    arguments: dict[str, Any] = vars(whole) | {"features": halves.astype(np.float64)}
    first = solve(SelectionProblem(**arguments))
    second = solve(SelectionProblem(**arguments | {"features": FeatureMatrix(blocks)}))
    assert np.array_equal(first.indices, second.indices)
    # Blocks are summed one after another: the same numbers in another order.
    assert first.objective == pytest.approx(second.objective, rel=1e-12)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-12)


def test_removed_directions_and_scale_equal_the_explicit_matrix() -> None:
    rng = np.random.default_rng(9)
    instance = random_instance(rng, 60, 6, "energy")
    basis = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    scale = rng.random(60) + 0.5
    explicit = (scale[:, None] * instance.features) @ (np.eye(6) - basis @ basis.T)
    arguments: dict[str, Any] = vars(instance.problem())
    lazy = solve(
        SelectionProblem(**arguments | {"features": FeatureMatrix(instance.features, scale=scale, removed=basis)})
    )
    direct = solve(SelectionProblem(**arguments | {"features": explicit}))
    assert np.array_equal(lazy.indices, direct.indices)
    assert lazy.objective == pytest.approx(direct.objective, rel=1e-12)  # products in another order


# --- edges ---


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_features_of_zero_leave_the_choice_to_rank(objective: Objective) -> None:
    instance = Instance(np.zeros((5, 3)), np.ones(5), 2.0, objective, np.ones(3), 2, ranks=np.array([4, 0, 3, 1, 2]))
    selection = solve(instance.problem())
    assert selection.indices.tolist() == [1, 3]
    assert (selection.objective, selection.bound, selection.status) == (0.0, 0.0, "optimal")
    assert not selection.scores.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_identical_samples(objective: Objective) -> None:
    instance = Instance(np.ones((6, 2)), np.full(6, 0.1), 0.1 * 3, objective, np.ones(2), 3)
    selection = solve(instance.problem())  # 0.1 · 3 is a hair more than fsum of three, and less than a plain sum
    assert_evidence_is_true(instance, selection)
    assert selection.indices.tolist() == [0, 1, 2]
    assert selection.objective == pytest.approx(
        {"energy": 18.0, "descent": 6.0, "matching": -6.0}[objective], rel=1e-15
    )
    assert selection.status == "optimal"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_all_samples_and_one_sample(objective: Objective) -> None:
    rng = np.random.default_rng(10)
    drawn = random_instance(rng, 8, 3, objective)
    everything = Instance(**vars(drawn) | {"num_selected": 8, "budget": float(drawn.cost.sum())})
    selection = solve(everything.problem())
    assert_evidence_is_true(everything, selection)
    assert sorted(selection.indices) == list(range(8))

    single = Instance(**vars(drawn) | {"num_selected": 1, "budget": float(np.median(drawn.cost))})
    selection = solve(single.problem())
    assert_evidence_is_true(single, selection)
    assert selection.objective == pytest.approx(single.values(single.allowed_selections()).max(), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pool_of_one(objective: Objective) -> None:
    instance = Instance(np.array([[3.0, -4.0]]), np.array([2.0]), 2.0, objective, np.array([1.0, 0.0]), 1)
    selection = solve(instance.problem())
    assert selection.indices.tolist() == [0]
    value = {"energy": 25.0, "descent": 3.0, "matching": 6.0 - 25.0}[objective]
    assert (selection.objective, selection.status) == (value, "optimal")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_budget_given_never_binds(objective: Objective) -> None:
    drawn = random_instance(np.random.default_rng(11), 10, 3, objective)
    free = Instance(**vars(drawn) | {"budget": np.inf})
    assert_evidence_is_true(free, solve(free.problem()))


def test_repr_shows_the_evidence() -> None:
    instance = Instance(np.eye(2), np.ones(2), 1.0, "descent", np.array([2.0, 1.0]), 1)
    assert repr(solve(instance.problem())) == (
        "Selection(1 of 2 samples, objective 2 (bound 2), budget used 1 of 1, optimal)"
    )


def test_what_matching_counts_from_moves_value_and_bound_and_not_the_choice() -> None:
    rng = np.random.default_rng(4)
    X, target, start = rng.normal(size=(40, 6)), rng.normal(size=6), rng.normal(size=6)
    first, second = (
        solve(SelectionProblem(X, np.ones(40), num_selected=8, objective="matching", target=8 * target, start=origin))
        for origin in (None, 8 * start)
    )
    assert first.indices.tolist() == second.indices.tolist()
    moved = np.square(8 * (start - target)).sum() - np.square(8 * target).sum()
    assert second.objective - first.objective == pytest.approx(moved)
    # The relaxed problem is solved to a gap relative to the value, so that bounds move by that only about.
    assert second.bound - first.bound == pytest.approx(moved, rel=0.02)
    for wrong in ({"objective": "descent", "start": start}, {"objective": "matching", "start": start[:3]}):
        with pytest.raises(ValueError, match="start is of matching"):
            SelectionProblem(X, np.ones(40), num_selected=8, target=target, **wrong)
    with pytest.raises(ValueError, match="start must be finite"):
        SelectionProblem(X, np.ones(40), num_selected=8, objective="matching", target=target, start=np.full(6, np.nan))
