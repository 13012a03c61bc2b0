"""Budgets by band, floors and ceilings, forced samples: against brute force, and what is said where none is feasible.

N samples, K selected, m bands, B tokens.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from direct_anneal.solver import (
    InfeasibleBudgetError,
    InfeasibleError,
    Quota,
    Relaxation,
    Selection,
    SelectionProblem,
    solve,
)
from direct_anneal.solver import lp_coupled as coupled_module
from direct_anneal.solver.lp import OneBudget
from direct_anneal.solver.lp_coupled import Coupled

Float = NDArray[np.float64]
Objective = Literal["energy", "descent"]

OBJECTIVES: list[Objective] = ["energy", "descent"]
WITHIN = 1 + 1e-12  # budgets are met up to this factor, as `Selection` says
DOMAINS = ("code", "math", "web")

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=25)


@dataclass(frozen=True)
class Instance:
    """A problem with every kind of constraint, as arrays that can be permuted and enumerated."""

    features: Float  # (N, R)
    cost: Float  # (N, m)
    budgets: Float  # (m,)
    num_selected: int
    target: Float
    domains: NDArray[np.str_]
    floors: dict[str, float]
    ceilings: dict[str, float]
    unit: Literal["samples", "tokens"]
    tokens: NDArray[np.int64]
    forced_in: NDArray[np.bool_]
    forced_out: NDArray[np.bool_]
    ranks: NDArray[np.int64]

    def problem(self, objective: Objective, permutation: NDArray[np.intp] | None = None) -> SelectionProblem:
        order = np.arange(len(self.cost)) if permutation is None else permutation
        return SelectionProblem(
            self.features[order],
            self.cost[order],
            num_selected=self.num_selected,
            budget=self.budgets,
            objective=objective,
            target=self.target if objective == "descent" else None,
            num_tokens=self.tokens[order],
            tie_order=self.ranks[order],
            quotas=Quota(self.domains[order], self.floors, self.ceilings, self.unit, "domain"),
            forced_in=self.forced_in[order],
            forced_out=np.flatnonzero(self.forced_out[order]),  # positions are as good as a mask
        )

    def counted(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        weight = self.tokens if self.unit == "tokens" else np.ones(len(self.tokens))
        return {domain: float(weight[chosen & (self.domains == domain)].sum()) for domain in DOMAINS}

    def allows(self, chosen: NDArray[np.bool_]) -> bool:
        counted = self.counted(chosen)
        return bool(
            chosen.sum() == self.num_selected
            and all(math.fsum(self.cost[chosen, j]) <= self.budgets[j] * WITHIN for j in range(len(self.budgets)))
            and all(counted[domain] >= floor for domain, floor in self.floors.items())
            and all(counted[domain] <= ceiling for domain, ceiling in self.ceilings.items())
            and chosen[self.forced_in].all()
            and not chosen[self.forced_out].any()
        )

    def allowed(self) -> NDArray[np.bool_]:
        """Every selection that keeps all promises, shape (C, N)."""
        picks = itertools.combinations(range(len(self.cost)), self.num_selected)
        masks = [np.isin(np.arange(len(self.cost)), pick) for pick in picks]
        return np.array([mask for mask in masks if self.allows(mask)]).reshape(-1, len(self.cost))

    def values(self, selections: NDArray[np.bool_], objective: Objective) -> Float:
        sums = selections @ self.features
        return np.sum(sums**2, axis=1) if objective == "energy" else sums @ self.target


def drawn(rng: np.random.Generator, num_samples: int, *, integers: bool = False, feasible: bool = True) -> Instance:
    """General position or small integers; limits around a selection that keeps them all, or around none."""
    bands = int(rng.integers(1, 4))
    features = rng.normal(size=(num_samples, 3))
    cost = np.exp(rng.normal(size=(num_samples, bands)))
    if integers:
        features, cost = rng.integers(-2, 3, features.shape).astype(float), rng.integers(0, 4, cost.shape).astype(float)
    num_selected = int(rng.integers(1, num_samples))
    chosen = np.zeros(num_samples, dtype=bool)
    chosen[rng.permutation(num_samples)[:num_selected]] = True
    instance = Instance(
        features=features,
        cost=cost,
        budgets=cost[chosen].sum(axis=0) * rng.uniform(1.0, 1.3, bands),
        num_selected=num_selected,
        target=rng.normal(size=3),
        domains=rng.choice(DOMAINS, num_samples),
        floors={},
        ceilings={},
        unit=str(rng.choice(["samples", "tokens"])),  # type: ignore[arg-type]
        tokens=rng.integers(1, 9, num_samples),
        forced_in=chosen & (rng.random(num_samples) < 0.2),
        forced_out=~chosen & (rng.random(num_samples) < 0.2),
        ranks=rng.permutation(num_samples),
    )
    counted = instance.counted(chosen)
    floors = {domain: max(0.0, count - rng.integers(0, 2)) for domain, count in counted.items() if rng.random() < 0.5}
    ceilings = {domain: count + rng.integers(0, 2) for domain, count in counted.items() if rng.random() < 0.5}
    instance = replace(instance, floors=floors, ceilings=ceilings)
    if feasible:
        return instance
    return replace(
        instance,
        budgets=instance.budgets * rng.uniform(0.3, 1.0, bands),
        floors={domain: floor + int(rng.integers(0, 3)) for domain, floor in floors.items()},
    )


def as_mask(selection: Selection) -> NDArray[np.bool_]:
    chosen = np.zeros(len(selection.weights), dtype=np.bool_)
    chosen[selection.indices] = True
    return chosen


def assert_evidence_is_true(instance: Instance, selection: Selection, objective: Objective) -> None:
    chosen = as_mask(selection)
    assert instance.allows(chosen)
    value = float(instance.values(chosen[None], objective)[0])
    assert selection.objective == pytest.approx(value, rel=1e-12, abs=1e-12)  # sums in another order
    assert selection.objective <= selection.bound
    assert selection.budget_used.tolist() == [math.fsum(column) for column in instance.cost[chosen].T]
    weights = selection.weights
    assert np.all((weights >= 0) & (weights <= 1))
    # HiGHS meets the relaxation's rows to 1e-10 of what one selected sample may have, and its sums are rounded.
    assert weights.sum() == pytest.approx(instance.num_selected, rel=1e-9)
    assert np.all(weights @ instance.cost <= instance.budgets * (1 + 1e-8) + 1e-9)
    assert np.all(weights[instance.forced_in] == 1)
    assert np.all(weights[instance.forced_out] == 0)


class TestBruteForce:
    def test_descent_is_the_best_always(self) -> None:
        rng = np.random.default_rng(0)
        for number in range(60):
            instance = drawn(rng, int(rng.integers(2, 11)), integers=number % 3 == 0)
            selection = solve(instance.problem("descent"))
            assert_evidence_is_true(instance, selection, "descent")
            best = instance.values(instance.allowed(), "descent").max()
            assert selection.objective == pytest.approx(best, abs=1e-8)  # HiGHS: 1e-10 of gains up to 1e2
            assert selection.bound == pytest.approx(best, abs=1e-7)

    def test_energy_is_the_best_in_at_least_nine_of_ten(self) -> None:
        rng, matched = np.random.default_rng(1), []
        for number in range(40):
            instance = drawn(rng, int(rng.integers(2, 11)), integers=number % 3 == 0)
            selection = solve(instance.problem("energy"))
            assert_evidence_is_true(instance, selection, "energy")
            best = instance.values(instance.allowed(), "energy").max()
            assert selection.bound >= best * (1 - 1e-9)
            matched.append(selection.objective >= best * (1 - 1e-12))
        assert np.mean(matched) >= 0.9

    def test_one_band_and_no_quota_is_the_exact_step_of_one_multiplier(self) -> None:
        """Two ways to the same relaxed optimum: HiGHS on the core, and the multiplier found exactly."""
        rng = np.random.default_rng(2)
        for _ in range(20):
            num_samples = int(rng.integers(2, 60))
            cost, gain = np.exp(rng.normal(size=num_samples)), rng.normal(size=num_samples)
            num_selected = int(rng.integers(1, num_samples + 1))
            least = float(np.sort(cost)[:num_selected].sum())
            budget = least + rng.random() * (float(cost.sum()) - least)
            one, several = (
                polytope(
                    SelectionProblem(
                        np.zeros((num_samples, 1)), costs, num_selected=num_selected, budget=np.array(budgets)
                    )
                )
                for polytope, costs, budgets in (
                    (OneBudget, cost, budget),
                    (Coupled, np.stack([cost, cost], axis=1), [budget, 2 * budget]),
                )
            )
            assert several.maximise(gain).value == pytest.approx(one.maximise(gain).value, abs=1e-8)
            assert several.least_cost[0] == pytest.approx(least, rel=1e-8)


class TestInvariants:
    @repeatable
    @given(
        seed=st.integers(0, 2**32 - 1),
        num_samples=st.integers(2, 30),
        objective=st.sampled_from(OBJECTIVES),
        integers=st.booleans(),
    )
    def test_every_promise_is_kept(self, seed: int, num_samples: int, objective: Objective, integers: bool) -> None:
        instance = drawn(np.random.default_rng(seed), num_samples, integers=integers)
        assert_evidence_is_true(instance, solve(instance.problem(objective)), objective)

    @repeatable
    @given(
        seed=st.integers(0, 2**32 - 1),
        num_samples=st.integers(2, 30),
        objective=st.sampled_from(OBJECTIVES),
        copies=st.booleans(),
    )
    def test_permuting_the_pool_permutes_the_selection(
        self, seed: int, num_samples: int, objective: Objective, copies: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        instance = drawn(rng, num_samples)
        if copies:  # each row twice, in all that gain and constraints see: ranks must decide
            half = np.arange(num_samples) // 2
            same = {name: getattr(instance, name)[half] for name in ("features", "cost", "domains", "tokens")}
            instance = replace(
                instance,
                **same,
                budgets=np.full(instance.cost.shape[1], np.inf),
                floors={},
                ceilings={"web": float(num_samples * 9)},
                forced_in=np.zeros(num_samples, dtype=bool),
                forced_out=np.zeros(num_samples, dtype=bool),
            )
        permutation = rng.permutation(num_samples)
        first, second = solve(instance.problem(objective)), solve(instance.problem(objective, permutation))
        assert np.array_equal(first.indices, permutation[second.indices])
        assert first.bound == pytest.approx(second.bound, rel=1e-9, abs=1e-9)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_twice_gives_the_same_bytes(self, objective: Objective) -> None:
        instance = drawn(np.random.default_rng(3), 80)
        first, second = solve(instance.problem(objective)), solve(instance.problem(objective))
        for name in ("indices", "weights", "scores"):
            assert getattr(first, name).tobytes() == getattr(second, name).tobytes()

    @pytest.mark.parametrize("seed", range(6))
    def test_zooming_in_finds_the_optimum_of_the_whole(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """3,000 samples by way of programs over 100, against one program over all."""
        instance = drawn(np.random.default_rng(seed), 3000)
        gain = instance.features @ instance.target
        whole = Coupled(instance.problem("descent")).maximise(gain)
        monkeypatch.setattr(coupled_module, "_CORE", 100)
        monkeypatch.setattr(coupled_module, "_STRATUM", 8)
        zoomed = Coupled(instance.problem("descent")).maximise(gain)
        # Weights need not be the same, the value is; 1e-10 by HiGHS for each of 1,000s of gains of order 1.
        assert zoomed.value == pytest.approx(whole.value, rel=1e-8)
        assert gain @ zoomed.weights == pytest.approx(whole.value, rel=1e-8)

    def test_by_tokens_every_promise_is_kept_and_nothing_more_fits(self) -> None:
        rng, solved = np.random.default_rng(4), 0
        for _ in range(40):
            instance = drawn(rng, int(rng.integers(4, 14)))
            arguments: dict[str, Any] = vars(instance.problem("descent")) | {
                "num_selected": None,
                "token_budget": int(instance.tokens.sum() * rng.uniform(0.4, 0.9)) + 1,
                "budget": instance.budgets * 2,
            }
            try:
                selection = solve(SelectionProblem(**arguments))
            except InfeasibleError:  # by tokens the relaxation must be able to use all of them up
                continue
            solved += 1
            chosen = as_mask(selection)
            held = int(instance.tokens[chosen].sum())
            assert held <= arguments["token_budget"]
            relaxed = replace(instance, num_selected=int(chosen.sum()), budgets=instance.budgets * 2)
            assert relaxed.allows(chosen)
            for more in np.flatnonzero(~chosen & (held + instance.tokens <= arguments["token_budget"])):
                with_it = chosen.copy()
                with_it[more] = True
                assert not replace(relaxed, num_selected=int(with_it.sum())).allows(with_it)
        assert solved >= 10


class TestInfeasible:
    def test_refused_exactly_where_no_selection_exists_and_what_is_named_is_enough(self) -> None:
        rng, refused = np.random.default_rng(5), 0
        for number in range(80):
            instance = drawn(rng, int(rng.integers(2, 9)), integers=number % 3 == 0, feasible=False)
            if len(instance.allowed()):
                assert_evidence_is_true(instance, solve(instance.problem("descent")), "descent")
                continue
            refused += 1
            with pytest.raises(InfeasibleError) as caught:
                solve(instance.problem("descent"))
            self.relax_and_solve(instance, caught.value)
        assert 20 <= refused <= 75

    def relax_and_solve(self, instance: Instance, error: InfeasibleError) -> None:
        """Counting alone may hide another cause; that is named next, and at the last all is feasible."""
        for _ in range(6):
            for relaxation in error.relaxations:
                assert relaxation.name in str(error) or relaxation.name.startswith("the sum of")
            relaxed = self.relaxed(instance, error.relaxations)
            if relaxed is None:
                return
            instance = relaxed
            if "must be" in str(error) or len(instance.allowed()):  # found by a program: what is named is enough
                assert_evidence_is_true(instance, solve(instance.problem("descent")), "descent")
                return
            with pytest.raises(InfeasibleError) as caught:
                solve(instance.problem("descent"))
            error = caught.value
        pytest.fail(f"still infeasible: {error}")

    @staticmethod
    def relaxed(instance: Instance, relaxations: tuple[Relaxation, ...]) -> Instance | None:
        """The instance with what the error names relaxed; None where that is a sum over several domains."""
        assert relaxations
        budgets, floors, ceilings = instance.budgets.copy(), dict(instance.floors), dict(instance.ceilings)
        for relaxation in relaxations:
            if relaxation.name.startswith("the budget"):
                band = int(relaxation.name.rpartition(" ")[2]) - 1 if "band" in relaxation.name else 0
                assert relaxation.asked == pytest.approx(budgets[band], rel=1e-11)
                budgets[band] = relaxation.needed * (1 + 1e-12)
            elif " domain " in relaxation.name:
                side = floors if relaxation.name.startswith("the floor") else ceilings
                side[relaxation.name.rpartition(" ")[2]] = relaxation.needed
            else:
                return None
        return replace(instance, budgets=budgets, floors=floors, ceilings=ceilings)

    def test_a_relaxation_of_one_budget_is_the_least(self) -> None:
        cost = np.array([[1.0, 5.0], [2.0, 3.0], [4.0, 1.0]])
        problem = SelectionProblem(np.eye(3), cost, num_selected=2, budget=np.array([9.0, 3.0]))
        with pytest.raises(
            InfeasibleBudgetError, match=r"the budget of band 2 must be at least 4, but is 3: "
        ) as caught:
            solve(problem)
        assert [(r.asked, r.needed) for r in caught.value.relaxations] == [(pytest.approx(3.0), pytest.approx(4.0))]
        # The least factor: fractions of the second sample for the third's and the first's do not help here.
        np.testing.assert_allclose(caught.value.least_feasible, [12.0, 4.0], rtol=1e-8)

    def test_a_budget_that_a_floor_makes_too_small_names_the_least(self) -> None:
        problem = SelectionProblem(
            np.eye(4),
            np.array([1.0, 1.0, 5.0, 6.0]),
            num_selected=2,
            budget=3.0,
            quotas=Quota(["web", "web", "math", "math"], floors={"math": 1}, kind="domain"),
        )
        with pytest.raises(InfeasibleBudgetError, match="at least 6") as caught:
            solve(problem)
        assert (caught.value.budget, caught.value.least_feasible) == (3.0, pytest.approx(6.0))
        assert len(solve(replace(problem, budget=caught.value.least_feasible)).indices) == 2

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"floors": {"math": 3}}, r"the floor of domain math asks for 3 samples, but the pool has 2: lower it"),
            ({"floors": {"law": 1}}, r"the floor of domain law asks for 1 samples, but the pool has 0"),
            (
                {"floors": {"math": 2}, "forced_out": [3]},
                r"asks for 2 samples, but the pool has 1 that are not forced out",
            ),
            (
                {"floors": {"math": 2, "web": 2}},
                r"the floors ask for 4 samples together.* but 3 are .* lower them by 1",
            ),
            ({"ceilings": {"math": 0, "web": 2}}, r"the ceilings leave room for 2 samples together.* raise them by 1"),
            (
                {"floors": {"web": 2}, "ceilings": {"web": 1}},
                r"the floor of domain web, 2 samples, is above its ceiling",
            ),
            (
                {"ceilings": {"web": 1}, "forced_in": [0, 1]},
                r"the ceiling of domain web allows 1 .*, but 2 are forced in",
            ),
            ({"forced_in": [0, 1, 2, 3]}, r"forced in must fit the 3 samples asked for, but are 4"),
            ({"forced_out": [0, 1, 2]}, r"3 samples are asked for, but without those forced out the pool has 2"),
            (
                {"floors": {"math": 9}, "unit": "tokens"},
                r"the floor of domain math asks for 9 tokens, but the pool has 8",
            ),
            ({"forced_in": [4], "budget": 4.0}, r"the budget must be at least 7"),
        ],
    )
    def test_what_counting_shows_is_said_in_a_line(self, changes: dict[str, Any], reason: str) -> None:
        quota = {name: changes.pop(name) for name in ("floors", "ceilings", "unit") if name in changes}
        given = {
            "features": np.eye(5),
            "stiff_cost": np.array([1.0, 1.0, 1.0, 1.0, 5.0]),
            "num_selected": 3,
            "budget": 10.0,
            "num_tokens": np.full(5, 4),
            "quotas": Quota(["web", "web", "web", "math", "math"], kind="domain", **quota) if quota else (),
        }
        with pytest.raises(InfeasibleError, match=reason) as caught:
            solve(SelectionProblem(**given | changes))
        assert caught.value.relaxations
        assert "\n" not in str(caught.value)

    def test_whole_samples_may_need_more_than_fractions(self) -> None:
        """Half of each would have five tokens of math; no whole selection has."""
        problem = SelectionProblem(
            np.eye(4),
            np.ones(4),
            num_selected=2,
            num_tokens=np.array([4, 6, 1, 1]),
            quotas=Quota(["math", "math", "web", "web"], {"math": 5}, {"math": 5}, "tokens", "domain"),
        )
        with pytest.raises(InfeasibleError, match=r"domain math must be at (most|least) [46], but is 5"):
            solve(problem)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"forced_in": [1, 2], "forced_out": [2]}, "sample 2 is forced both in and out"),
            ({"forced_in": [5]}, "forced_in must be a mask of shape"),
            ({"forced_out": np.ones(3, bool)}, "forced_out must be a mask of shape"),
            ({"stiff_cost": np.ones((4, 2)), "budget": np.ones(3)}, "one per sample and band"),
            ({"stiff_cost": np.ones((4, 2)), "budget": 1.0}, "one per sample and band"),
            ({"budget": np.array([1.0, np.nan]), "stiff_cost": np.ones((4, 2))}, "budget must be ≥ 0"),
            ({"quotas": Quota(["a", "b"], {"a": 1})}, "a quota's groups have shape"),
            ({"quotas": Quota(list("abab"), {"a": 1}, unit="tokens")}, "a quota in tokens needs num_tokens"),
        ],
    )
    def test_unsound_problems_are_refused(self, changes: dict[str, Any], reason: str) -> None:
        sound = {"features": np.ones((4, 2)), "stiff_cost": np.ones(4), "num_selected": 2, "budget": 4.0}
        with pytest.raises(ValueError, match=reason):
            SelectionProblem(**sound | changes)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"unit": "words"}, "unit must be"),
            ({"floors": {"a": -1}}, "the floor of group a must be finite"),
            ({"ceilings": {"a": np.nan}}, "the ceiling of group a must be finite"),
        ],
    )
    def test_unsound_quotas_are_refused(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            Quota(["a", "b"], **changes)
