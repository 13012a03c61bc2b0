"""Rows of hashed n-grams: against counting one by one, and kept as other features are.

n documents, L places of a row.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.corpus_samples import prepared
from direct_anneal.errors import InputError
from direct_anneal.features import NGRAM_SIZE, Extraction, FeatureStore, ShardRows, ngram_store, ngrams_of
from direct_anneal.features.ngrams import ngram_rows
from direct_anneal.solver import FeatureMatrix, Joined
from selection.tiny import documents, files_below, write_jsonl


def ngram_row(tokens: np.ndarray) -> np.ndarray:
    return ngram_rows([tokens])[0]


def mixed(number: int) -> int:
    """SplitMix64's finaliser, on whole numbers of Python."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def naive_row(tokens: list[int]) -> np.ndarray:
    """One n-gram after the other, in the order of their hashes at each place."""
    golden, counts = 0x9E3779B97F4A7C15, Counter[int]()
    for ngram in [*((token,) for token in tokens), *itertools.pairwise(tokens)]:
        number = len(ngram)
        for token in ngram:
            number = mixed((number + golden) % 2**64 ^ token)
        counts[number] += 1
    row = np.zeros(NGRAM_SIZE)
    for place in range(1, 5):
        added = np.zeros(NGRAM_SIZE)
        for ngram in sorted(counts):
            bits = mixed((ngram + place * golden) % 2**64)
            added[(bits >> 1) % NGRAM_SIZE] += float(np.log1p(counts[ngram])) * (1 if bits & 1 else -1)
        row += added
    return row / np.linalg.norm(row)


def cosine(first: list[int], second: list[int]) -> float:
    """Cosine of the two vectors of log(1 + count) over tokens and pairs of neighbours, one by one."""
    found = []
    for tokens in (first, second):
        counts = Counter([*((token,) for token in tokens), *itertools.pairwise(tokens)])
        found.append({ngram: math.log(1 + count) for ngram, count in counts.items()})
    products = sum(weight * found[1].get(ngram, 0.0) for ngram, weight in found[0].items())
    lengths = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in found]
    return products / (lengths[0] * lengths[1])


def test_inner_products_are_cosines_of_log_counts() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.zipf(1.3, size=200) % 500 for _ in range(40)]
    rows = np.stack([ngram_row(tokens) for tokens in drawn])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    errors = [rows[i] @ rows[j] - cosine(list(drawn[i]), list(drawn[j])) for i in range(40) for j in range(i)]
    assert np.abs(errors).max() < 5 / math.sqrt(NGRAM_SIZE)


def test_rows_are_those_of_a_loop_whichever_documents_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    drawn = [rng.zipf(1.3, size=size) % 50_000 for size in (1, 2, 3, 70, 1, 40, 300, 2)]
    expected = np.stack([naive_row(tokens.tolist()) for tokens in drawn])
    np.testing.assert_allclose(ngram_rows(drawn), expected, rtol=1e-12, atol=1e-14)
    whole = ngram_rows(drawn).tobytes()
    for size in (1, 45, 2**20):
        monkeypatch.setattr("direct_anneal.features.ngrams._BLOCK_TOKENS", size)
        assert ngram_rows(drawn).tobytes() == whole
    assert np.stack([ngram_row(tokens) for tokens in drawn]).tobytes() == whole


def test_what_has_nothing_in_common_leans_to_neither_side() -> None:
    rows = np.stack([ngram_row(np.arange(200 * first, 200 * (first + 1))) for first in range(40)])
    products = (rows @ rows.T)[np.triu_indices(40, 1)]
    assert abs(products.mean()) < 4 / math.sqrt(NGRAM_SIZE * len(products))
    assert products.std() == pytest.approx(1 / math.sqrt(NGRAM_SIZE), rel=0.15)


def test_the_order_of_tokens_counts_and_their_number_does_not() -> None:
    tokens = np.arange(50)
    assert ngram_row(tokens) @ ngram_row(tokens[::-1]) == pytest.approx(0.5, abs=0.1)  # tokens alike, pairs not
    assert ngram_row(tokens) @ ngram_row(np.tile(tokens, 3)) > 0.95
    assert np.linalg.norm(ngram_row(np.array([7]))) == pytest.approx(1.0)  # a single token has no pairs


def test_an_ngram_has_four_places_and_its_log_count() -> None:
    row = ngram_row(np.array([5, 6, 5]))  # 5 twice; 6 and two pairs once
    weights = np.array([*[math.log(2)] * 12, *[math.log(3)] * 4])
    np.testing.assert_allclose(np.sort(np.abs(row[np.flatnonzero(row)])), weights / np.linalg.norm(weights))


def test_rows_are_kept_and_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus", write_jsonl(tmp_path / "pool.jsonl", documents(30, seed=1)))
    told: list[int] = []
    store = ngrams_of(tmp_path / "ngrams", corpus, advance=told.append)
    rows = np.concatenate(store.features())
    expected = np.stack([ngram_row(corpus.tokens(row)) for row in range(30)])
    np.testing.assert_array_equal(rows, expected.astype(np.float16))
    assert sum(told) == 30
    before = files_below(tmp_path / "ngrams")
    shard = tmp_path / "ngrams" / "features-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert store.missing() == [0]
    ngrams_of(tmp_path / "ngrams", corpus)
    assert files_below(tmp_path / "ngrams") == before


def test_they_are_made_with_the_shards_of_gradients(tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus", write_jsonl(tmp_path / "pool.jsonl", documents(20, seed=1)))
    ngrams_of(tmp_path / "apart", corpus, rows_per_shard=8)
    words = ngram_store(tmp_path / "beside", corpus, rows_per_shard=8)
    store = FeatureStore(tmp_path / "store", num_samples=20, sketch_size=4, fingerprint={}, rows_per_shard=8)
    extraction = Extraction(corpus, store, 64, lambda _: None, asked=None, batch_tokens=64, words=words)
    for shard in (2, 0, 1, 1):
        of = extraction.documents(shard)
        count = len(of.tokens)
        rows = ShardRows(
            features=np.zeros((count, 4), np.float16),
            samples=of.samples,
            losses=np.zeros(count),
            norms=np.ones(count),
        )
        extraction.write(shard, of, rows)
    assert store.missing() == words.missing() == []
    assert files_below(tmp_path / "beside") == files_below(tmp_path / "apart")


def test_rows_of_other_documents_are_not_taken(tmp_path: Path) -> None:
    pools = [write_jsonl(tmp_path / f"{seed}.jsonl", documents(8, seed=seed)) for seed in (1, 2)]
    first, second = (prepared(tmp_path / f"corpus-{number}", pool) for number, pool in enumerate(pools))
    ngrams_of(tmp_path / "ngrams", first)
    with pytest.raises(InputError, match="another run"):
        ngrams_of(tmp_path / "ngrams", second)
    store = ngrams_of(tmp_path / "ngrams", second, replace=True)
    np.testing.assert_array_equal(store.features()[0][:1][0], ngram_row(second.tokens(0)).astype(np.float16))


def test_they_stand_beside_gradients(tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "corpus", write_jsonl(tmp_path / "pool.jsonl", documents(9, seed=1)))
    (words,) = ngrams_of(tmp_path / "ngrams", corpus).features()
    gradients = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float16)
    together = np.hstack([0.6 * gradients.astype(float), 0.8 * np.asarray(words, dtype=float)])
    kept = np.arange(9) % 3 != 1
    for left, right, expected in (
        (gradients, words, together),
        (gradients[kept], words.only(kept), together[kept]),  # type: ignore[union-attr]
    ):
        joined = Joined(left, right, (0.6, 0.8))
        assert joined.shape == expected.shape
        for some in (slice(1, 4), np.array([3, 0])):
            np.testing.assert_allclose(joined[some], expected[some], rtol=1e-6)
        direction = np.random.default_rng(1).normal(size=expected.shape[1])
        np.testing.assert_allclose(FeatureMatrix([joined]).dot(direction), expected @ direction, rtol=1e-5, atol=1e-6)
