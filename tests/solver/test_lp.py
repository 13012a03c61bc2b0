"""The exact linear step against HiGHS, and the promises of its rounding.

N samples, K selected, τ budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from direct_anneal.solver import InfeasibleBudgetError, SelectionProblem
from direct_anneal.solver.feasible import nth_largest
from direct_anneal.solver.lp import OneBudget

Float = NDArray[np.float64]

# HiGHS may overstep each constraint by as much; it allows no less.
HIGHS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)


@dataclass(frozen=True)
class Instance:
    """One linear problem without its budget; `tokens` is None where K samples are asked for."""

    gain: Float
    cost: Float
    capacity: int
    tokens: NDArray[np.int64] | None = None

    @property
    def size(self) -> Float:
        return np.ones(len(self.cost)) if self.tokens is None else self.tokens.astype(np.float64)

    def polytope(self, budget: float, permutation: NDArray[np.intp] | None = None) -> OneBudget:
        order = np.arange(len(self.cost)) if permutation is None else permutation
        return OneBudget(
            SelectionProblem(
                np.zeros((len(self.cost), 1)),
                self.cost[order],
                num_selected=self.capacity if self.tokens is None else None,
                budget=budget,
                num_tokens=None if self.tokens is None else self.tokens[order],
                token_budget=None if self.tokens is None else self.capacity,
                tie_order=order,
            )
        )

    def least_budget(self) -> float:
        """The cheapest weights' cost, by HiGHS; by tokens, some sample that fits must be affordable whole, too."""
        result = linprog(self.cost, A_eq=[self.size], b_eq=[self.capacity], bounds=(0, 1), options=HIGHS)
        assert result.status == 0
        if self.tokens is None:
            return float(result.fun)
        return max(float(result.fun), float(self.cost[self.tokens <= self.capacity].min()))

    def optimum(self, budget: float) -> float:
        """The linear problem's value, by HiGHS; the budget's row is scaled to 1, so that its tolerance is relative."""
        scale = budget if budget > 0 else 1.0
        result = linprog(
            -self.gain,
            A_ub=[self.cost / scale],
            b_ub=[budget / scale],
            A_eq=[self.size],
            b_eq=[self.capacity],
            bounds=(0, 1),
            options=HIGHS,
        )
        assert result.status == 0
        return float(-result.fun)


def random_instance(rng: np.random.Generator, num_samples: int, *, tokens: bool, spread: float = 0.5) -> Instance:
    """General position: gains of both signs, log-normal costs a fifth of which are zero."""
    cost = np.exp(spread * rng.normal(size=num_samples)) * (rng.random(num_samples) > 0.2)
    gain = rng.normal(size=num_samples)
    if not tokens:
        return Instance(gain, cost, int(rng.integers(1, num_samples + 1)))
    lengths = rng.integers(1, 900, num_samples)
    return Instance(gain, cost, int(rng.integers(lengths.min(), lengths.sum() + 1)), lengths)


def least_budget_of_ours(instance: Instance) -> float:
    return instance.polytope(np.inf).least_cost


def budget_between(instance: Instance, share: float) -> float:
    """From the least feasible (0) to what taking everything costs (1)."""
    least = least_budget_of_ours(instance)
    return least + share * (float(instance.cost.sum()) - least)


def assert_solves(instance: Instance, budget: float) -> None:
    """The value is HiGHS's, the weights attain it within every constraint, and the rounding keeps its promises."""
    polytope = instance.polytope(budget)
    solution = polytope.maximise(instance.gain)
    weights = solution.weights
    # HiGHS may use 1e-10 more of the budget than there is, we 1e-12, and a unit of budget is worth the multiplier;
    # the rest is the rounding of sums, 1e-16 of the sum of magnitudes for each of N ≤ 2,000 terms.
    tolerance = 1e-9 * (1.0 + float(np.abs(instance.gain) @ weights) + solution.multipliers.sum() * budget)
    assert solution.value == pytest.approx(instance.optimum(budget), abs=tolerance)
    assert instance.gain @ weights == pytest.approx(solution.value, abs=tolerance)
    assert np.all(solution.multipliers >= 0)

    assert np.all((weights >= 0) & (weights <= 1))
    assert weights @ instance.size == pytest.approx(instance.capacity, rel=1e-12)  # sums in another order
    assert weights @ instance.cost <= budget * (1 + 2e-12)  # the documented 1e-12, and as much for another order

    chosen = solution.chosen
    assert chosen.dtype == np.bool_
    assert polytope.feasible(chosen)
    assert math.fsum(instance.cost[chosen]) <= budget * (1 + 1e-12)  # documented: budgets are met up to this
    if instance.tokens is None:
        assert chosen.sum() == instance.capacity
    else:
        assert instance.tokens[chosen].sum() <= instance.capacity


def fractional(weights: Float) -> int:
    """Weights strictly between; 1e-9 from either end is rounding, since budgets are met to 1e-12 only."""
    return int(np.sum((weights > 1e-9) & (weights < 1 - 1e-9)))


@st.composite
def integer_instances(draw: st.DrawFn) -> Instance:
    """Small integers, so that gains, costs and densities tie often and every sum is exact."""
    num_samples = draw(st.integers(1, 9))

    def some(low: int, high: int) -> Float:
        return np.array(draw(st.lists(st.integers(low, high), min_size=num_samples, max_size=num_samples)), float)

    gain, cost = some(-4, 4), some(0, 4)
    if draw(st.booleans()):
        return Instance(gain, cost, draw(st.integers(1, num_samples)))
    tokens = some(1, 6).astype(np.int64)
    return Instance(gain, cost, draw(st.integers(int(tokens.min()), int(tokens.sum()))), tokens)


shares = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 1.0])  # 0 is the least feasible budget, 1 never binds


@repeatable
@given(instance=integer_instances(), share=shares)
def test_integers_with_ties_match_highs(instance: Instance, share: float) -> None:
    assert_solves(instance, budget_between(instance, share))


@repeatable
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(1, 30), tokens=st.booleans(), share=shares)
def test_general_position_matches_highs(seed: int, num_samples: int, tokens: bool, share: float) -> None:
    instance = random_instance(np.random.default_rng(seed), num_samples, tokens=tokens)
    assert_solves(instance, budget_between(instance, share))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("excess", [0.0, 1e-13, 1e-9, 1e-4])
@pytest.mark.parametrize("seed", range(4))
def test_heavy_tailed_costs_a_hair_above_the_least_budget(seed: int, excess: float, tokens: bool) -> None:
    # Costs over ten orders of magnitude, as fourth powers of gradients are; the multiplier becomes very large.
    instance = random_instance(np.random.default_rng(seed), 50, tokens=tokens, spread=5.0)
    assert_solves(instance, least_budget_of_ours(instance) * (1 + excess))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_two_thousand_samples_match_highs(share: float, tokens: bool) -> None:
    instance = random_instance(np.random.default_rng(7), 2000, tokens=tokens)
    assert_solves(instance, budget_between(instance, share))


@pytest.mark.parametrize("budget", [10.0, np.inf])
def test_slack_budget_takes_the_largest_gains(budget: float) -> None:
    solution = Instance(np.array([1.0, 3.0, 2.0, -1.0]), np.ones(4), 2).polytope(budget).maximise(np.arange(4.0))
    assert solution.chosen.tolist() == [False, False, True, True]
    assert solution.value == 5.0
    assert not solution.multipliers.any()


@pytest.mark.parametrize("num_selected", [1, 5])
def test_one_sample_and_all_samples(num_selected: int) -> None:
    rng = np.random.default_rng(2)
    gain, cost = rng.normal(size=5), rng.random(5)
    instance = Instance(gain, cost, num_selected)
    for share in (0.0, 0.3, 1.0):
        assert_solves(instance, budget_between(instance, share))


def test_zero_budget_takes_free_samples_only() -> None:
    instance = Instance(np.array([9.0, 1.0, 2.0, 8.0]), np.array([1.0, 0.0, 0.0, 1e-30]), 2)
    assert instance.polytope(0.0).maximise(instance.gain).chosen.tolist() == [False, True, True, False]


def test_cheapest_of_equal_cost_gives_way_to_the_better_gain() -> None:
    # The cheapest filling by order is sample 0, but sample 1 costs no more and gains more.
    instance = Instance(np.array([0.0, 5.0, 10.0]), np.array([1.0, 1.0, 2.0]), 1)
    solution = instance.polytope(1.0).maximise(instance.gain)
    assert solution.chosen.tolist() == [False, True, False]
    assert solution.value == pytest.approx(5.0, abs=1e-10)  # 1e-12 of budget beyond τ, worth 5 each


@repeatable
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(1, 40), share=st.floats(0.0, 1.0))
def test_at_most_two_weights_are_fractional(seed: int, num_samples: int, share: float) -> None:
    instance = random_instance(np.random.default_rng(seed), num_samples, tokens=False)
    solution = instance.polytope(budget_between(instance, share)).maximise(instance.gain)
    assert fractional(solution.weights) <= 2


@repeatable
@given(instance=integer_instances(), share=shares)
def test_at_most_two_weights_are_fractional_with_ties_too(instance: Instance, share: float) -> None:
    if instance.tokens is None:
        solution = instance.polytope(budget_between(instance, share)).maximise(instance.gain)
        assert fractional(solution.weights) <= 2


@repeatable
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(2, 40), share=st.floats(0.0, 1.0))
def test_rounding_loses_at_most_the_gain_of_one_exchange(seed: int, num_samples: int, share: float) -> None:
    """With share w of i and 1 − w of o split, taking o whole loses w (c_i − c_o); nothing else is rounded."""
    instance = random_instance(np.random.default_rng(seed), num_samples, tokens=False)
    solution = instance.polytope(budget_between(instance, share)).maximise(instance.gain)
    split = instance.gain[(solution.weights > 0) & (solution.weights < 1)]
    loss = solution.value - instance.gain[solution.chosen].sum()
    assert loss >= -1e-10  # both sums have at most 40 terms of order 1, and 1e-12 of the budget is worth μ τ 1e-12
    assert loss <= (np.ptp(split) if len(split) else 0.0) + 1e-10


@repeatable
@given(instance=integer_instances(), share=st.floats(0.0, 0.99))
def test_infeasible_names_exactly_the_least_feasible_budget(instance: Instance, share: float) -> None:
    least = instance.least_budget()
    if least < 1e-9:  # HiGHS's tolerance: nothing is below a least budget of zero
        assert least_budget_of_ours(instance) == pytest.approx(0.0, abs=1e-9)
        return
    with pytest.raises(InfeasibleBudgetError) as caught:
        instance.polytope(share * least)
    assert caught.value.budget == share * least
    assert caught.value.least_feasible == pytest.approx(least, rel=1e-9)  # HiGHS's tolerance, ten times
    assert f"{caught.value.least_feasible:.6g}" in str(caught.value)
    assert_solves(instance, caught.value.least_feasible)  # what is named can be asked for as it stands


@repeatable
@given(instance=integer_instances(), share=shares, seed=st.integers(0, 2**32 - 1))
def test_permuting_samples_permutes_the_solution(instance: Instance, share: float, seed: int) -> None:
    """With integers every sum is exact in any order, so that ties stay ties and the answers are the same numbers."""
    permutation = np.random.default_rng(seed).permutation(len(instance.cost))
    budget = budget_between(instance, share)
    first = instance.polytope(budget).maximise(instance.gain)
    second = instance.polytope(budget, permutation).maximise(instance.gain[permutation])
    assert np.array_equal(first.chosen[permutation], second.chosen)
    # Fractional weights divide what is left of the budget, a sum in another order and no integer after 1 + 1e-12.
    np.testing.assert_allclose(first.weights[permutation], second.weights, atol=1e-9)


@pytest.mark.parametrize("tokens", [False, True])
def test_permuting_samples_in_general_position(tokens: bool) -> None:
    rng = np.random.default_rng(11)
    for _ in range(30):
        instance = random_instance(rng, 40, tokens=tokens)
        permutation = rng.permutation(40)
        budget = budget_between(instance, 0.2)
        first = instance.polytope(budget).maximise(instance.gain)
        second = instance.polytope(budget, permutation).maximise(instance.gain[permutation])
        assert np.array_equal(first.chosen[permutation], second.chosen)
        np.testing.assert_allclose(first.weights[permutation], second.weights, atol=1e-9)  # as above


@repeatable
@given(instance=integer_instances())
def test_max_count_bounds_the_sum_of_weights(instance: Instance) -> None:
    most = linprog(
        -np.ones(len(instance.cost)), A_ub=[instance.size], b_ub=[instance.capacity], bounds=(0, 1), options=HIGHS
    )
    # HiGHS may hold 1e-10 tokens too many, of samples no shorter than one token.
    assert instance.polytope(np.inf).max_count() == pytest.approx(-most.fun, abs=1e-9)


@pytest.mark.parametrize("kind", ["normal", "ascending", "few values", "forced", "misleading sample"])
def test_nth_largest_is_what_sorting_finds(kind: str) -> None:
    rng, size = np.random.default_rng(0), 40_000  # enough for the bracket from a sample
    values = {
        "normal": rng.normal(size=size),
        "ascending": np.arange(size, dtype=np.float64),
        "few values": rng.integers(0, 3, size).astype(np.float64),
        "forced": np.where(np.arange(size) < 100, np.inf, np.where(rng.random(size) < 0.5, -np.inf, rng.random(size))),
        # Every ninth value is high, and the sample is of every ninth.
        "misleading sample": np.where(np.arange(size) % 9 == 0, 1.0, 0.0) + 0.1 * rng.random(size),
    }[kind]
    descending = np.sort(values)[::-1]
    for count in (1, 2, 100, 101, 4_444, 4_445, 20_000, size - 1, size):
        assert nth_largest(values, count) == descending[count - 1]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_thousands_that_tie_at_one_multiplier(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gains in proportion to costs: every filling is optimal at one multiplier, and steps by what is used find nothing.
    rng = np.random.default_rng(1)
    cost = rng.integers(1, 9, 2_000).astype(np.float64)
    instance = Instance(3.0 * cost, cost, 400)
    least, most = np.sort(cost)[:400].sum(), np.sort(cost)[-400:].sum()
    budget = float(least + share * (most - least))
    polytope = instance.polytope(budget)
    found = polytope.maximise(instance.gain)
    assert found.value == pytest.approx(3.0 * budget, rel=1e-12)  # sums of 400 terms, in another order
    beside = replace(found, multipliers=np.array([2.9]))  # 3 lies between this and 1.1 times as much
    fillings, fill = [], polytope.fill
    monkeypatch.setattr(polytope, "fill", lambda value: fillings.append(1) or fill(value))
    assert polytope.maximise(instance.gain, after=beside).value == pytest.approx(3.0 * budget, rel=1e-12)
    assert len(fillings) <= 6  # two for the guess, then one by what is used, which changes nothing, and the crossing
