"""FeatureMatrix against the explicit matrix F diag(scale) Z.

N samples, R sketch size, S removed directions, k columns.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.features.rows import StoredRows
from direct_anneal.solver import FeatureMatrix, matrix
from direct_anneal.solver import parts as reading
from direct_anneal.solver.parts import Joined
from solver.elsewhere import Pickling

Float = NDArray[np.float64]

N, R, S = 23, 7, 3
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # sums of N ≤ 23 terms of order 1, in another order


@pytest.fixture(params=["plain", "scaled", "removed", "both", "mapped"])
def pair(request: pytest.FixtureRequest) -> tuple[FeatureMatrix, Float]:
    """A matrix of three blocks (one of them empty, all in float16), and the same numbers written out."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, R)).astype(np.float16)
    basis = np.linalg.qr(rng.normal(size=(R, S)))[0]
    scale = rng.random(N) if request.param in ("scaled", "both", "mapped") else None
    removed = basis if request.param in ("removed", "both") else None
    explicit = z.astype(np.float64)
    if scale is not None:
        explicit = np.diag(scale) @ explicit
    if removed is not None:
        explicit = explicit @ (np.eye(R) - removed @ removed.T)
    mapped = rng.normal(size=(R, R)) if request.param == "mapped" else None
    if mapped is not None:
        explicit = explicit @ mapped
    return FeatureMatrix([z[:10], z[10:10], z[10:]], scale=scale, removed=removed, mapped=mapped), explicit


def test_every_product_matches_the_explicit_matrix(pair: tuple[FeatureMatrix, Float]) -> None:
    features, X = pair
    rng = np.random.default_rng(1)
    directions, weights = rng.normal(size=(R, 4)), rng.normal(size=(N, 4))
    assert features.shape == (N, R)
    np.testing.assert_allclose(features.dot(directions), X @ directions, **EXACT)
    np.testing.assert_allclose(features.dot(directions[:, 0]), X @ directions[:, 0], **EXACT)
    np.testing.assert_allclose(features.weighted_sum(weights), X.T @ weights, **EXACT)
    np.testing.assert_allclose(features.weighted_sum(weights[:, 0]), X.T @ weights[:, 0], **EXACT)
    np.testing.assert_allclose(features.gram(), X.T @ X, **EXACT)
    np.testing.assert_allclose(features.squared_norms(), np.sum(X**2, axis=1), **EXACT)
    for _ in range(2):  # by the Gram matrix that was asked for, and without one
        np.testing.assert_allclose(features.mean_squared_norm(), np.sum(X**2) / N, **EXACT)
        features._shared.gram = (None, None)
    indices = [22, 0, 10, 9, 10]  # out of order, across blocks, twice the same
    np.testing.assert_allclose(features.rows(indices), X[indices], **EXACT)
    assert features.rows([]).shape == (0, R)


def test_large_blocks_are_worked_on_in_parts(
    pair: tuple[FeatureMatrix, Float], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, X = pair
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 8 * R * 4)  # four rows at a time
    weights = np.random.default_rng(2).normal(size=N)
    np.testing.assert_allclose(features.weighted_sum(weights), X.T @ weights, **EXACT)
    np.testing.assert_allclose(features.dot(np.eye(R)), X, **EXACT)
    np.testing.assert_allclose(features.gram(), X.T @ X, **EXACT)
    np.testing.assert_allclose(features.squared_norms(), np.sum(X**2, axis=1), **EXACT)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a matrix is, each pass reads it anew, three rows at a time."""
    monkeypatch.setattr(matrix, "_KEPT", 0)
    monkeypatch.setattr(reading, "_CACHED", 3 * R)


def products(features: FeatureMatrix) -> list[bytes]:
    rng = np.random.default_rng(4)
    directions, weights = rng.normal(size=(R, 3)), rng.normal(size=(N, 3))
    found = (features.dot(directions), features.weighted_sum(weights), features.gram(), features.squared_norms())
    return [product.tobytes() for product in found]


def test_reading_again_and_again_changes_no_bit(
    pair: tuple[FeatureMatrix, Float], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    features, _ = pair
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 8 * R * 2)
    kept = products(features)
    request.getfixturevalue("again")
    like = {"scale": features._scale, "removed": features._map._removed, "mapped": features._map._mapped}
    read = FeatureMatrix(features._blocks, **like)
    assert products(read) == kept
    assert read.passes == features.passes == 4


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a matrix is, it has parts, of five rows each."""
    monkeypatch.setattr(matrix, "_PART_BYTES", 8 * R * 5)


@pytest.mark.parametrize("grams", [64, 2])  # of five parts: by themselves, and three in a run
def test_parts_together_are_the_matrix(
    pair: tuple[FeatureMatrix, Float],
    monkeypatch: pytest.MonkeyPatch,
    parts: None,
    grams: int,
) -> None:
    monkeypatch.setattr(matrix, "_GRAMS", grams)
    whole, X = pair
    again = FeatureMatrix(whole._blocks, scale=whole._scale, removed=whole._map._removed, mapped=whole._map._mapped)
    assert len(again._parts) == 5
    test_every_product_matches_the_explicit_matrix((again, X))


def test_parts_computed_elsewhere_give_the_same_bits(tmp_path: Path, parts: None) -> None:
    """Also from a store, of which only the names of files are sent, and rows in quarantine are left out."""
    rng = np.random.default_rng(6)
    z, kept = rng.normal(size=(N + 4, R)).astype(np.float16), np.arange(N + 4) % 7 != 3
    blocks = []
    for shard, rows in enumerate((slice(0, 9), slice(9, 18), slice(18, N + 4))):
        np.save(tmp_path / f"{shard}.npy", z[rows])
        blocks.append(StoredRows(tmp_path / f"{shard}.npy", z[rows].shape).only(kept[rows]))
    count = int(kept.sum())
    keywords = {"scale": rng.random(count), "removed": np.linalg.qr(rng.normal(size=(R, S)))[0]}
    elsewhere = Pickling()
    there, here = FeatureMatrix(blocks, **keywords, mapper=elsewhere), FeatureMatrix(z[kept], **keywords)
    scaled = z[kept].astype(np.float64) * keywords["scale"][:, None]
    weights = rng.normal(size=(3, count)).T  # columns together: a slice of it is in no order that a copy would have
    for features in (there, here):
        assert features.shape == (count, R)
    np.testing.assert_array_equal(there.weighted_sum(weights), here.weighted_sum(weights))
    np.testing.assert_array_equal(there.dot(weights[:R]), here.dot(weights[:R]))
    np.testing.assert_array_equal(there.gram(), here.gram())
    np.testing.assert_array_equal(there.squared_norms(), here.squared_norms())
    np.testing.assert_array_equal(there.of_rows(cubed, 8 * R * 2), here.of_rows(cubed, 8 * R * 2))
    np.testing.assert_allclose(here.of_rows(cubed, 8 * R * 2), scaled**3, **EXACT)
    assert there.passes == 5


def test_rows_that_are_not_kept_are_the_same_numbers(tmp_path: Path, again: None) -> None:
    """Rows of a store, alone and beside another, with every kind of float16; and few of them weighed."""
    z = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    z = np.nan_to_num(z, nan=0.5, posinf=1.0, neginf=-1.0)
    np.save(tmp_path / "rows.npy", z)
    stored = StoredRows(tmp_path / "rows.npy", z.shape)
    pairs = [(stored, z), (Joined(stored, z, (0.3, 2.0)), np.asarray(Joined(z, z, (0.3, 2.0))[:]))]
    weights = np.zeros(len(z))
    weights[3::5] = 1.0
    for block, plain in pairs:
        there, here = FeatureMatrix([block]), FeatureMatrix(plain.astype(np.float64))
        direction = np.random.default_rng(9).normal(size=plain.shape[1])
        np.testing.assert_array_equal(there.dot(direction), here.dot(direction))
        np.testing.assert_array_equal(there.weighted_sum(weights), here.weighted_sum(weights))
        np.testing.assert_allclose(there.weighted_sum(weights), plain.astype(np.float64).T @ weights, rtol=1e-10)


def test_rough_products_err_by_float32s_rounding_and_not_where_rows_are_kept(
    pair: tuple[FeatureMatrix, Float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, X = pair
    direction = np.random.default_rng(10).normal(size=R)
    exact, norms = kept.dot(direction), kept.squared_norms()
    np.testing.assert_array_equal(kept.dot(direction, rough=True), exact)
    np.testing.assert_array_equal(kept.squared_norms(rough=True), norms)
    monkeypatch.setattr(matrix, "_KEPT", 0)
    like = {"scale": kept._scale, "removed": kept._map._removed, "mapped": kept._map._mapped}
    other = FeatureMatrix(kept._blocks, **like)
    rough, rough_norms = other.dot(direction, rough=True), other.squared_norms(rough=True)
    # Some ten roundings of 2⁻²⁴ in each, of terms that may cancel.
    largest = np.linalg.norm(X, axis=1).max() * np.linalg.norm(direction)
    assert 0 < np.abs(rough - exact).max() < 1e-5 * largest
    np.testing.assert_allclose(rough_norms, norms, rtol=1e-5, atol=1e-5 * norms.max())
    np.testing.assert_array_equal(other.dot(direction), exact)
    np.testing.assert_array_equal(other.squared_norms(), norms)


def cubed(rows: Float) -> Float:
    return rows**3


def test_what_is_sent_holds_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, rows = 512, 64
    monkeypatch.setattr(matrix, "_PART_BYTES", 8 * wide * rows)
    z = np.random.default_rng(7).normal(size=(256, wide)).astype(np.float16)
    np.save(tmp_path / "rows.npy", z)
    elsewhere = Pickling()
    features = FeatureMatrix([StoredRows(tmp_path / "rows.npy", z.shape)], mapper=elsewhere)
    features.dot(np.ones(wide))
    features.weighted_sum(np.ones(256))
    # Of four parts: 64 numbers either way, or R; some hundred bytes of names and shapes are about them.
    assert len(elsewhere.sent) == 8
    assert max(elsewhere.sent) < 8 * rows + 1000 < z.nbytes / 4 / 10
    assert max(elsewhere.received) < 8 * wide + 1000


def test_how_rows_are_cut_into_blocks_changes_no_bit(pair: tuple[FeatureMatrix, Float], again: None) -> None:
    z = np.random.default_rng(5).normal(size=(N, R))
    cuts = ([z], [z[:1], z[1:20], z[20:20], z[20:]], [z[i : i + 1] for i in range(N)])
    assert len({tuple(products(FeatureMatrix(blocks))) for blocks in cuts}) == 1


class Broken:
    """Rows of which the last can never be read."""

    shape = (N, R)

    def __len__(self) -> int:
        return N

    def __getitem__(self, rows: slice) -> Float:
        if rows.stop >= N:
            raise OSError("the disk is gone")
        return np.ones((rows.stop - rows.start, R))


def test_what_fails_while_reading_is_raised_as_it_is(again: None) -> None:
    with pytest.raises(OSError, match=r"^the disk is gone$"):
        FeatureMatrix([Broken()]).weighted_sum(np.ones(N))


def test_what_fits_is_read_once_and_shared(pair: tuple[FeatureMatrix, Float]) -> None:
    class Counting:
        """Rows that tell how many of them were read."""

        def __init__(self) -> None:
            self.rows, self.read = np.random.default_rng(8).normal(size=(N, R)), 0
            self.shape = (N, R)

        def __len__(self) -> int:
            return N

        def __getitem__(self, rows: slice) -> Float:
            self.read += len(self.rows[rows])
            return self.rows[rows]

    counting = Counting()
    features = FeatureMatrix([counting])
    products(features)
    doubled = features.like(scale=np.full(N, 2.0))
    products(doubled)
    assert counting.read == N
    np.testing.assert_array_equal(doubled.rows([3, 1]), 2.0 * counting.rows[[3, 1]])
    assert counting.read == N
    plain = FeatureMatrix(counting.rows)
    plain.dot(np.ones(R))
    part = pickle.loads(pickle.dumps(plain._parts[0]))  # noqa: S301 what is sent elsewhere is read there
    assert plain._parts[0].in_memory
    assert not part.in_memory


def test_nothing_given_is_written_to(tmp_path: Path) -> None:
    z = np.random.default_rng(3).normal(size=(N, R))
    np.save(tmp_path / "block.npy", z)
    block = np.load(tmp_path / "block.npy", mmap_mode="r")  # writing into it would raise
    scale = np.full(N, 2.0)
    features = FeatureMatrix(block, scale=scale, removed=np.eye(R)[:, :1])
    features.gram(), features.squared_norms(), features.dot(np.ones(R)), features.weighted_sum(np.ones(N))
    features.rows([0])
    assert np.array_equal(block, z)
    assert np.all(scale == 2.0)


@pytest.mark.parametrize(
    ("blocks", "keywords", "reason"),
    [
        ([], {}, "same R"),
        (np.zeros(3), {}, "same R"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], {}, "same R"),
        (np.zeros((2, 3)), {"scale": np.ones(3)}, "one factor per row"),
        (np.zeros((2, 3)), {"removed": np.eye(2)}, r"removed must be of shape \(3, \.\.\.\)"),
        (np.zeros((2, 3)), {"mapped": np.eye(2)}, r"mapped must be of shape \(3, \.\.\.\)"),
        (np.zeros((2, 3)), {"removed": np.eye(3), "mapped": np.eye(3)}, "but not both"),
    ],
)
def test_shapes_that_disagree_are_refused(blocks: object, keywords: dict[str, Float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FeatureMatrix(blocks, **keywords)
