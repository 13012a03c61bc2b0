"""Each baseline against its formula written out, and what all of them share."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from baselines.candidate_samples import candidates
from direct_anneal.baselines import BASELINES, Candidates, take
from direct_anneal.baselines import dsir as dsir_module
from direct_anneal.baselines.cluster_histogram import histogram_weights
from direct_anneal.baselines.dsir import importance
from direct_anneal.baselines.ngrams import counts
from direct_anneal.baselines.paper import algorithm_2

pytest.importorskip("sklearn", reason="baselines on n-grams need the extra 'compare'")


@pytest.fixture
def given(tmp_path: Path) -> Candidates:
    return candidates(tmp_path / "given")


class TestEveryBaseline:
    @pytest.mark.parametrize("name", BASELINES)
    def test_scores_do_not_depend_on_the_order_of_the_pool(self, given: Candidates, tmp_path: Path, name: str) -> None:
        turned = candidates(tmp_path / "turned", reverse=True)
        scores, other = (BASELINES[name].score(each, 3) for each in (given, turned))
        assert scores.shape == (30,)
        if name == "quality-classifier":  # an iterative fit, whose sums come in another order
            assert np.allclose(scores, other[::-1], rtol=1e-3, atol=1e-3)
        else:
            assert np.allclose(scores, other[::-1], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", BASELINES)
    def test_the_seed_matters_where_it_is_said_to(self, given: Candidates, name: str) -> None:
        one, two = (BASELINES[name].score(given, seed) for seed in (0, 1))
        assert np.array_equal(one, two) is not BASELINES[name].is_seeded

    @pytest.mark.parametrize(
        "name", [name for name, one in BASELINES.items() if one.needs_gradients or one.needs_losses]
    )
    def test_what_has_no_gradient_is_never_chosen(self, tmp_path: Path, name: str) -> None:
        given = candidates(tmp_path / "damaged", unusable=(4, 11))
        scores = BASELINES[name].score(given, 0)
        assert np.flatnonzero(np.isnan(scores)).tolist() == [4, 11]
        assert take(scores, given, num_samples=30).sum() == 28

    @pytest.mark.parametrize("name", BASELINES)
    def test_needs_what_it_is_said_to_need(self, given: Candidates, name: str) -> None:
        baseline = BASELINES[name]
        has = {
            "gradients": given.gradients if baseline.needs_gradients else None,
            "path_losses": {model: given.losses(model) for model in baseline.needs_losses} or None,
            "hidden_states": given.hidden_states if baseline.needs_embeddings else None,
        }
        assert np.array_equal(
            baseline.score(Candidates(given.pool, given.validation, **has), 0), baseline.score(given, 0), equal_nan=True
        )
        if any(value is not None for value in has.values()):
            with pytest.raises(ValueError, match=r"needs (gradients|losses|embeddings)"):
                baseline.score(Candidates(given.pool, given.validation), 0)


def test_random_is_uniform(given: Candidates) -> None:
    scores = np.concatenate([BASELINES["random"].score(given, seed) for seed in range(100)])
    # 3,000 uniform numbers: the mean lies within 5 standard errors of 1/2 but once in a million.
    assert abs(scores.mean() - 0.5) < 5 / math.sqrt(12 * 3000)
    assert 0 <= scores.min() < 0.01 < 0.99 < scores.max() < 1


def test_perplexities_rank_by_loss(given: Candidates) -> None:
    loss = given.pool_gradients.samples["loss"].to_numpy()
    low = take(BASELINES["low-perplexity"].score(given, 0), given, num_samples=5)
    assert set(loss[low]) == set(np.sort(loss)[:5])
    middle = take(BASELINES["middle-perplexity"].score(given, 0), given, num_samples=10)
    assert set(loss[middle]) == set(np.sort(loss)[10:20])


def test_gradient_scores_are_their_formulas(given: Candidates) -> None:
    z, target = given.pool_gradients.dense(), given.validation_gradients.dense()
    domains = np.array(given.validation_gradients.samples["domain"].to_pylist())
    mean = target.mean(0)

    def cosines(direction: np.ndarray) -> np.ndarray:
        return np.array([row @ direction / np.linalg.norm(row) / np.linalg.norm(direction) for row in z])

    # Units are float16, of 11 bits; `dense` is their product with the norms, so that only ‖unit‖ ≠ 1 shows.
    tolerance = {"rtol": 2e-3, "atol": 2e-3}
    assert np.allclose(BASELINES["gradient-cosine"].score(given, 0), cosines(mean), **tolerance)
    by_domain = [cosines(target[domains == name].mean(0)) for name in ("prose", "code")]
    assert np.allclose(BASELINES["less"].score(given, 0), np.maximum(*by_domain), **tolerance)
    hessian = sum(np.outer(row, row) for row in z) / len(z)
    damped = hessian + 0.1 * np.linalg.eigvalsh(hessian).mean() * np.eye(len(hessian))
    expected = z @ np.linalg.inv(damped) @ mean
    assert np.allclose(BASELINES["influence"].score(given, 0), expected, rtol=1e-9)


def test_loss_scores_are_their_formulas(given: Candidates) -> None:
    start, target, prior, conditional = (given.losses(name) for name in ("start", "target", "prior", "conditional"))
    for i in range(30):
        assert BASELINES["conditional-loss"].score(given, 0)[i] == prior[i] - conditional[i]
        assert BASELINES["target-path"].score(given, 0)[i] == pytest.approx(1 - target[i] / start[i])


def test_embedding_similarity_is_the_largest_cosine(given: Candidates) -> None:
    assert given.hidden_states is not None
    pool, target = given.hidden_states
    mean = pool.mean(0)

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))

    cosines = [sorted(cosine(own - mean, other - mean) for other in target) for own in pool]
    expected = [max(row) for row in cosines]
    assert np.allclose(BASELINES["embedding-similarity"].score(given, 0), expected, rtol=1e-12)
    expected = [sum(row[-3:]) / 3 for row in cosines]
    assert np.allclose(BASELINES["embedding-similarity"].score(given, 0, num_nearest=3), expected, rtol=1e-12)


class TestClusterHistogram:
    def test_weights_are_ratios_of_shares(self) -> None:
        """Three clusters that nobody can mistake, the last without a target document."""
        centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
        labels = np.repeat([0, 1, 2], [20, 30, 10])
        pool = centres[labels] + np.random.default_rng(0).normal(size=(60, 2))
        target = centres[[0, 0, 0, 1]]
        found = histogram_weights(pool, target)
        assert np.allclose(found[labels == 0], math.log((3 / 4) / (20 / 60)))
        assert np.allclose(found[labels == 1], math.log((1 / 4) / (30 / 60)))
        assert found[labels == 2].max() < -100
        assert histogram_weights(pool, target, num_clusters=1).tolist() == [0.0] * 60


class TestThePublishedAlgorithm:
    def test_weights_are_feasible_and_a_vertex_that_no_other_is_better_than_in_the_linear_problem(self) -> None:
        """Each round's problem has few enough vertices to list: subsets of K, where the budget does not bind."""
        random = np.random.default_rng(4)
        pool, validation = random.normal(size=(8, 3)), random.normal(size=(9, 3))
        weights = algorithm_2(pool, validation, 3, budget_ratio=1e6)
        assert sorted(weights.round(9).tolist()) == [0.0] * 5 + [1.0] * 3
        values, vectors = np.linalg.eigh(validation.T @ validation / 9)
        shares = np.cumsum(values[::-1]) / values.sum()
        stiff = vectors[:, ::-1][:, : int(np.argmax(shares >= 0.945)) + 1]
        flat = pool - pool @ stiff @ stiff.T
        gradient = flat @ (flat.T @ weights)
        best = max(sum(gradient[list(chosen)]) for chosen in itertools.combinations(range(8), 3))
        assert gradient @ weights == pytest.approx(best)

    def test_the_budget_holds_and_is_raised_where_nothing_meets_it(self) -> None:
        random = np.random.default_rng(5)
        pool, validation = random.normal(size=(20, 4)), random.normal(size=(9, 4))
        values, vectors = np.linalg.eigh(validation.T @ validation / 9)
        shares = np.cumsum(values[::-1]) / values.sum()
        stiff = int(np.argmax(shares >= 0.945)) + 1
        cost = (pool @ vectors[:, ::-1][:, :stiff]) ** 2 @ values[::-1][:stiff]
        for ratio, most in ((0.8, 0.8 * cost.mean() * 4), (1e-6, 1.1 * np.sort(cost)[:4].sum())):
            weights = algorithm_2(pool, validation, 4, budget_ratio=ratio)
            assert weights.sum() == pytest.approx(4)
            assert cost @ weights <= most * (1 + 1e-6)  # HiGHS's own tolerance is 1e-7 of a row


class TestDsir:
    def test_weights_are_the_log_ratio_of_smoothed_bags(self) -> None:
        pool, validation = ["a b a", "c d", "b, b!"], ["a b", "a b c"]
        size = 64

        def bag(texts: list[str]) -> list[Counter[int]]:
            bags = []
            for text in texts:
                words = re.findall(r"\w+|[^\w\s]+", text.lower())
                grams = words + [f"{one} {two}" for one, two in itertools.pairwise(words)]
                bags.append(Counter(bucket(gram) for gram in grams))
            return bags

        def bucket(gram: str) -> int:
            from sklearn.utils import murmurhash3_32

            return abs(int(murmurhash3_32(gram, seed=0))) % size

        def frequency(bags: list[Counter[int]], place: int) -> float:
            total = sum(each.total() for each in bags)
            return (sum(each[place] for each in bags) + 1) / (total + size)

        pool_bags, target_bags = bag(pool), bag(validation)
        expected = [
            sum(
                count * math.log(frequency(target_bags, place) / frequency(pool_bags, place))
                for place, count in each.items()
            )
            for each in pool_bags
        ]
        found = importance(counts(pool, size), counts(validation, size))
        assert np.allclose(found, expected, rtol=1e-9)

    def test_resamples_in_proportion_to_importance(self, given: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
        """With weights log 1 .. log 30 the first of a Gumbel top-k is document i with probability i / 465."""
        weights = np.log(np.arange(1, 31))
        monkeypatch.setattr(dsir_module, "importance", lambda *_: weights)
        monkeypatch.setattr(dsir_module, "counts", lambda *_: None)
        first = np.array([np.argmax(BASELINES["dsir"].score(given, seed)) for seed in range(4000)])
        observed = np.bincount(first // 10, minlength=3) / 4000
        expected = np.array([55, 155, 255]) / 465
        # Five standard errors of a share of 4,000 draws.
        assert np.all(np.abs(observed - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000))

    def test_finds_the_target(self, given: Candidates) -> None:
        domains = np.array(given.pool.index["domain"].to_pylist())
        chosen = take(BASELINES["dsir"].score(given, 0), given, num_samples=12)
        assert np.mean(domains[chosen] != "table") > 0.9


def test_the_classifier_finds_the_target(given: Candidates) -> None:
    domains = np.array(given.pool.index["domain"].to_pylist())
    scores = BASELINES["quality-classifier"].score(given, 0)
    assert scores[domains != "table"].mean() > scores[domains == "table"].mean()


class TestTake:
    def test_by_documents_ties_go_to_the_smaller_id(self, given: Candidates) -> None:
        scores = np.zeros(30)
        scores[[3, 7]] = 1
        chosen = take(scores, given, num_samples=4)
        assert np.flatnonzero(chosen).tolist() == [0, 1, 3, 7]

    @pytest.mark.parametrize("budget", [100, 400, 1000, 10**6])
    def test_by_tokens_nothing_that_is_left_would_fit(self, given: Candidates, budget: int) -> None:
        lengths = given.pool.num_tokens
        scores = BASELINES["random"].score(given, 0)
        chosen = take(scores, given, num_tokens=budget)
        left = budget - lengths[chosen].sum()
        assert left >= 0
        assert chosen.all() or lengths[~chosen].min() > left
        best = np.argmax(scores)
        assert chosen[best] == (lengths[best] <= budget)

    def test_sizes_that_make_no_sense(self, given: Candidates) -> None:
        with pytest.raises(ValueError, match="exactly one"):
            take(np.zeros(30), given)
        with pytest.raises(ValueError, match="30 documents"):
            take(np.zeros(29), given, num_samples=1)
