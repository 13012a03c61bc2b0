"""Clusters of the validation set: against every partition, in any order and in batches of any size, and as paths."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data.corpus_samples import prepared
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path.clusters import SKETCH_SIZE, alike, clusters_of, mean_gradients
from direct_anneal.path.documents import Texts
from direct_anneal.path.parts import Part
from path.path_runs import descended
from selection.tiny import CONTEXT, documents, write_jsonl


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_is_the_best_of_all_partitions_in_two(seed: int) -> None:
    """Σ of cosines to the nearest centre, what a partition reaches being Σ ‖sum of its directions‖."""
    rng = np.random.default_rng(seed)
    gradients = np.repeat([[2.0, 0, 1], [0, 3, 1]], [5, 4], axis=0) + rng.normal(size=(9, 3))
    directions = units(units(gradients) - units(gradients).mean(axis=0))

    def reached(labels: np.ndarray) -> float:
        return sum(float(np.linalg.norm(directions[labels == part].sum(axis=0))) for part in (0, 1))

    partitions = [np.isin(np.arange(9), one) for size in range(1, 5) for one in combinations(range(9), size)]
    # Partitions with a part too small to stand are not looked for.
    best = max(reached(one.astype(int)) for one in partitions if min(one.sum(), 9 - one.sum()) > 1)
    labels = alike(gradients, 2)
    assert reached(labels) == pytest.approx(best)
    assert np.bincount(labels)[0] >= np.bincount(labels)[1]


def test_what_all_have_in_common_does_not_count_nor_lengths() -> None:
    rng = np.random.default_rng(0)
    own = np.repeat(np.eye(3)[[0, 1, 2]], [6, 5, 4], axis=0) + 0.05 * rng.normal(size=(15, 3))
    rows = np.hstack([own, np.full((15, 1), 2.0)]) * rng.uniform(0.1, 10, size=(15, 1))
    assert alike(rows, 3).tolist() == [0] * 6 + [1] * 5 + [2] * 4


def test_tiny_clusters_join_others_and_equals_make_one() -> None:
    rows = np.concatenate([np.repeat(np.eye(3)[:2], 20, axis=0), np.eye(3)[2:]])
    rows = rows + 0.01 * np.random.default_rng(1).normal(size=rows.shape)
    labels = alike(rows, 3)
    assert sorted(np.bincount(labels)) == [20, 21]
    assert set(alike(np.ones((6, 3)), 4).tolist()) == {0}
    assert set(alike(np.zeros((3, 2)), 2).tolist()) == {0}


@pytest.fixture(scope="module")
def mixed() -> Texts:
    """Code and tables, a document of two windows among them."""
    rows = [
        *documents(10, seed=1, prefix="c", domains=("code",)),
        *documents(7, seed=5, prefix="t", domains=("table",)),
    ]
    contents = [np.frombuffer(str(row["text"]).encode(), np.uint8).astype(np.int64) for row in rows]
    contents[3] = np.tile(contents[3], 3)[: CONTEXT + 20]
    return Texts([str(row["id"]) for row in rows], contents, np.zeros(len(rows), np.int64))


def test_depend_neither_on_order_nor_on_batches(checkpoint: Path, mixed: Texts) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    shuffled = np.random.default_rng(3).permutation(mixed.num_samples)
    labels = clusters_of(model, mixed, 2, max_length=CONTEXT)
    assert clusters_of(model, mixed.take(shuffled), 2, max_length=CONTEXT).tolist() == labels[shuffled].tolist()
    for batch_tokens in (1, 100, 10_000):
        found = clusters_of(model, mixed, 2, max_length=CONTEXT, batch_tokens=batch_tokens)
        assert found.tolist() == labels.tolist()
    agreeing = (labels == ([0] * 10 + [1] * 7)).mean()  # the two domains teach even random weights different things
    assert max(agreeing, 1 - agreeing) > 0.8


def test_a_documents_gradient_is_the_mean_over_its_windows(checkpoint: Path, mixed: Texts) -> None:
    model = Checkpoint(str(checkpoint)).load_model("cpu", "float32")
    whole = mixed.contents[3]
    parts = Texts(["a", "b", "none"], [whole[:CONTEXT], whole[CONTEXT:], whole[:1]], np.zeros(3, np.int64))
    one, two, none = mean_gradients(model, parts, CONTEXT, 500, lambda _: None)
    (found,) = mean_gradients(model, mixed.take(np.array([3])), CONTEXT, 500, lambda _: None)
    counts = np.array([CONTEXT - 1, len(whole) - CONTEXT - 1])
    np.testing.assert_allclose(found, (counts[0] * one + counts[1] * two) / counts.sum(), rtol=1e-4, atol=1e-5)
    assert found.shape == (SKETCH_SIZE,)
    assert not none.any()


def test_each_has_a_path_of_its_own(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = [
        *documents(8, seed=1, prefix="c", domains=("code",)),
        *documents(6, seed=5, prefix="t", domains=("table",)),
    ]
    write_jsonl(tmp_path / "validation.jsonl", [{**row, "domain": "all"} for row in target])
    write_jsonl(tmp_path / "pool.jsonl", documents(8, seed=2, prefix="p", domains=("code", "table")))
    validation, pool = (prepared(tmp_path / name, tmp_path / f"{name}.jsonl") for name in ("validation", "pool"))
    options = {"paths": "clusters", "num_clusters": 2, "learning_rates": (1e-2,)}
    losses = descended(checkpoint, tmp_path / "run", validation, pool, **options)
    assert losses.names == ("cluster-0", "cluster-1")
    parts = losses.described["parts"]
    assert sum(part["documents"] for part in parts.values()) == 14
    code = np.array([name == "code" for name in pool.index["domain"].to_pylist()])
    of_code = int(sum(name.startswith("c") for name in parts["cluster-1"]["ids"]) > 2)
    for place, own in ((of_code, code), (1 - of_code, ~code)):  # each path helps its own more than the other does
        assert losses.drops[own, place].mean() > losses.drops[own, 1 - place].mean()

    def found_again(*_: object, **__: object) -> None:
        raise AssertionError("clusters are kept")

    monkeypatch.setattr("direct_anneal.path.parts.clusters_of", found_again)
    for name in ("columns.json", "columns-00000.json"):
        (tmp_path / "run/losses" / name).unlink()
    again = descended(checkpoint, tmp_path / "run", validation, pool, **options)
    np.testing.assert_array_equal(again.ends, losses.ends)


def test_a_part_without_two_folds_is_told() -> None:
    from direct_anneal.errors import InputError
    from direct_anneal.path import PathConfig

    part = Part("part-0-", np.array([0, 1]))
    with pytest.raises(InputError, match=r"each part of the validation set .* must hold documents of two folds"):
        part.walks(PathConfig(num_folds=2), np.array([0, 0, 1]), {5: [0]})
