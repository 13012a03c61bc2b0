"""S is what its docstrings say: unbiased norms and inner products, N(0, 1/R) entries where dense, one seed one matrix.

R sketch size, D parameters, p factor size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from direct_anneal.gradients import projections
from direct_anneal.gradients.experts import Routing
from direct_anneal.gradients.fold import Fold
from direct_anneal.gradients.projections import DenseGaussian, Projection, TwoSided

Float = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]

CPU = torch.device("cpu")
SHAPES: Shapes = {
    "matrix": (12, 9),
    "cube": (2, 5, 4),
    "row": (1, 30),
    "column": (21, 1),
    "vector": (17,),
    "number": (),
}


def two_sided(p: int) -> Callable[[Shapes, int, int], Projection]:
    return lambda shapes, R, seed: TwoSided(shapes, R, seed, CPU, p)


def dense(shapes: Shapes, R: int, seed: int) -> Projection:
    return DenseGaussian(shapes, R, seed, CPU)


KINDS = [pytest.param(dense, id="dense"), *(pytest.param(two_sided(p), id=f"two-sided-{p}") for p in (1, 4, 40))]
Make = Callable[[Shapes, int, int], Projection]


def matrix(projection: Projection, shapes: Shapes) -> Float:
    """S, shape (R, D)."""
    columns = []
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        projection.begin(size)
        projection.full(name, torch.eye(size).reshape(size, *shape))
        columns.append(projection.finish().numpy().astype(np.float64))
    return np.concatenate(columns).T


@pytest.mark.parametrize("block_bytes", [None, 4 * 64 * 40 * 3])  # whole parameters; three rows of the larger matrix
def test_dense_entries_are_independent_normals(block_bytes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block_bytes is not None:
        monkeypatch.setattr(projections, "_BLOCK_BYTES", block_bytes)
    R = 64
    shapes = {"a": (40, 30), "b": (15, 40), "c": (50,), "d": ()}
    S = matrix(dense(shapes, R, 5), shapes) * np.sqrt(R)
    D = S.shape[1]
    assert D == 40 * 30 + 15 * 40 + 50 + 1
    # The mean of n standard normals has deviation 1/√n, their mean square √(2/n): five of each, 6e-7 each by chance.
    assert abs(S.mean()) < 5 / np.sqrt(S.size)
    assert abs(np.square(S).mean() - 1) < 5 * np.sqrt(2 / S.size)
    assert stats.kstest(S.ravel(), "norm").pvalue > 1e-3
    # Correlations of two independent rows have deviation 1/√D, of two columns 1/√R. Over all pairs (2e3 and 2e6) the
    # largest passes six and seven of them with a chance of 4e-6 each.
    for rows, length, deviations in ((S, D, 6), (S.T, R, 7)):
        gram = rows @ rows.T / length
        assert np.abs(gram[np.triu_indices(len(gram), 1)]).max() < deviations / np.sqrt(length)


@pytest.mark.parametrize("make", KINDS)
def test_norms_and_inner_products_are_unbiased(make: Make) -> None:
    """Over 400 seeds, within five of the mean's own standard errors, which know how heavy the tails are."""
    R = 8
    generator = torch.Generator().manual_seed(0)
    g, h = ({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(2))
    h = {name: 0.5 * g[name] + h[name] for name in SHAPES}  # not orthogonal, so that zero would be wrong
    norms, products = [], []
    for seed in range(400):
        projection = make(SHAPES, R, seed)
        projection.begin(2)
        for name in SHAPES:
            projection.full(name, torch.stack([g[name], h[name]]))
        first, second = projection.finish().double()
        norms.append(float(first @ first))
        products.append(float(first @ second))
    for estimates, true in (
        (norms, sum(float((g[name] ** 2).sum()) for name in SHAPES)),
        (products, sum(float((g[name] * h[name]).sum()) for name in SHAPES)),
    ):
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert error < 0.2 * abs(true), "the bound would accept anything"
        assert abs(np.mean(estimates) - true) < 5 * error


def test_dense_norms_spread_as_chi_squared() -> None:
    R = 32
    g = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    ratios = []
    for seed in range(400):
        projection = dense({"w": (3, 7)}, R, seed)
        projection.begin(1)
        projection.full("w", g[None])
        ratios.append(float(projection.finish().square().sum() / g.square().sum()))
    assert stats.kstest(np.array(ratios) * R, "chi2", args=(R,)).pvalue > 1e-3


@pytest.mark.parametrize("make", KINDS)
def test_both_forms_of_a_gradient_agree(make: Make) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in ("matrix", "row", "column"):
        m, n = SHAPES[name]
        rows, columns = torch.randn(3, 6, m, generator=generator), torch.randn(3, 6, n, generator=generator)
        tokens = torch.randint(m, (3, 6), generator=generator)
        projection = make(SHAPES, 16, 2)
        for factor, whole in ((rows, rows), (tokens, torch.nn.functional.one_hot(tokens, m).float())):
            projection.begin(3)
            projection.outer(name, projection.keep(name, 0, factor), projection.keep(name, 1, columns))
            by_factors = projection.finish()
            projection.begin(3)
            projection.full(name, whole.transpose(1, 2) @ columns)
            # One product of float32 matrices in another order; entries are of order one to ten.
            torch.testing.assert_close(by_factors, projection.finish(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("make", KINDS)
def test_sketches_are_linear_and_of_their_own_sample(make: Make) -> None:
    S = matrix(make(SHAPES, 16, 2), SHAPES)
    generator = torch.Generator().manual_seed(1)
    gradients = {name: torch.randn(3, *shape, generator=generator) for name, shape in SHAPES.items()}
    projection = make(SHAPES, 16, 2)
    projection.begin(3)
    for name, gradient in gradients.items():
        projection.full(name, 0.25 * gradient)  # in parts, as tied weights come
        for sample in (2, 0, 1):
            projection.full(name, 0.75 * gradient[sample : sample + 1], sample)
    flat = torch.cat([gradient.reshape(3, -1) for gradient in gradients.values()], dim=1).numpy()
    # float32 against float64; entries are of order one to ten.
    np.testing.assert_allclose(projection.finish().numpy(), flat @ S.T, rtol=1e-5, atol=1e-4)


def test_a_dense_block_follows_from_its_own_name_and_shape_alone() -> None:
    whole = dense(SHAPES, 16, 2)
    backwards = dense(dict(reversed(SHAPES.items())), 16, 2)
    for name, shape in SHAPES.items():
        reference = matrix(whole, {name: shape})
        np.testing.assert_array_equal(matrix(backwards, {name: shape}), reference)
        np.testing.assert_array_equal(matrix(dense({name: shape}, 16, 2), {name: shape}), reference)


@pytest.mark.parametrize("make", KINDS)
def test_the_same_names_shapes_and_seed_give_the_same_matrix(make: Make) -> None:
    np.testing.assert_array_equal(matrix(make(SHAPES, 16, 2), SHAPES), matrix(make(SHAPES, 16, 2), SHAPES))


@pytest.mark.parametrize("make", KINDS)
def test_blocks_of_two_names_or_seeds_differ(make: Make) -> None:
    shapes = {"a": (6, 5), "b": (6, 5), "a\0b": (6, 5)}
    blocks = [matrix(make(shapes, 16, seed), {name: shape}) for seed in (0, 1) for name, shape in shapes.items()]
    for first, second in itertools.combinations(blocks, 2):
        # Independent blocks of 480 entries; with p = 1 all entries of a row share three numbers, hence the wide bound.
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.9


def test_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    for make in (dense, two_sided(3)):
        matrix(make(SHAPES, 16, 2), SHAPES)
    assert torch.equal(torch.get_rng_state(), before)


def batch_of_everything(projection: Projection) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    projection.begin(4)
    for name, shape in SHAPES.items():
        projection.full(name, torch.randn(4, *shape, generator=generator))
    rows, columns = torch.randn(4, 6, 12, generator=generator), torch.randn(4, 6, 9, generator=generator)
    projection.outer("matrix", projection.keep("matrix", 0, rows), projection.keep("matrix", 1, columns))
    return projection.finish()


def test_blocks_drawn_anew_are_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dense(SHAPES, 16, 2)
    first, again = batch_of_everything(kept), batch_of_everything(kept)
    monkeypatch.setattr(projections, "_CACHE_BYTES", 0)
    drawn = dense(SHAPES, 16, 2)
    assert torch.equal(first, again)
    for _ in range(2):
        assert torch.equal(batch_of_everything(drawn), first)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_blocks_in_chunks_are_one_matrix(rows: int, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts of a block are part of the definition of S: for each, both forms of a gradient meet the same S."""
    monkeypatch.setattr(projections, "_BLOCK_BYTES", 4 * 16 * 9 * rows)
    monkeypatch.setattr(projections, "_GRADIENT_BYTES", 4 * 3 * 9 * 2)  # two rows at a time: pieces end inside blocks
    if not cached:
        monkeypatch.setattr(projections, "_CACHE_BYTES", 0)
    test_both_forms_of_a_gradient_agree(dense)
    test_sketches_are_linear_and_of_their_own_sample(dense)
    S = matrix(dense({"matrix": (12, 9)}, 16, 2), {"matrix": (12, 9)})
    assert np.unique(S, axis=1).shape == S.shape  # no chunk is another's copy, or column of 16 another's


@pytest.mark.parametrize("R", [7, 64, 2000])
def test_sides_that_fit_leave_a_sketch_of_signs(R: int) -> None:
    """Without projected sides S is the CountSketch alone: one sign for each entry, and as many in each place."""
    S = matrix(two_sided(40)(SHAPES, R, 0), SHAPES)
    D = S.shape[1]
    assert set(np.unique(S)) == {-1.0, 0.0, 1.0}
    assert np.all(np.count_nonzero(S, axis=0) == 1)
    assert np.count_nonzero(S, axis=1).max() <= -(-D // R)
    assert abs(S.sum()) < 5 * np.sqrt(D)  # the sum of D signs has deviation √D


def test_vectors_are_never_projected() -> None:
    """A norm's or a bias's gradient loses nothing before the places are shared."""
    S = matrix(two_sided(1)({"vector": (100,), "row": (1, 100)}, 16, 0), {"vector": (100,), "row": (1, 100)})
    assert set(np.unique(S)) == {-1.0, 0.0, 1.0}


def fold(size: int, places: int, seed: int = 0) -> Fold:
    return Fold(size, places, np.random.default_rng(seed), CPU)


@pytest.mark.parametrize(("size", "places"), [(12, 4), (13, 4), (7, 6), (40, 1), (100, 32)])
def test_a_fold_lays_runs_over_its_places(size: int, places: int) -> None:
    P = fold(size, places)(torch.eye(size)).numpy().T  # (places, size)
    assert set(np.unique(P)) <= {-1.0, 0.0, 1.0}
    assert np.all(np.count_nonzero(P, axis=0) == 1)
    for first in range(0, size, places):
        assert np.count_nonzero(P[:, first : first + places], axis=1).max() == 1
    tokens = torch.randint(size, (3, 5), generator=torch.Generator().manual_seed(0))
    summed = fold(size, places).summed(tokens, torch.eye(5).expand(3, 5, 5))
    np.testing.assert_array_equal(summed.numpy(), P.T[tokens].swapaxes(1, 2))
    # Where additions cost more than multiplications, the same P is a matrix.
    np.testing.assert_array_equal(fold(size, places).matrix(torch.float32).numpy(), P.T)


def test_a_fold_errs_no_more_than_a_gaussian() -> None:
    """Each of p places is as likely for two entries in different runs: the variance of ⟨Pu, Pv⟩ follows exactly."""
    size, places, draws = 24, 8, 4000
    generator = np.random.default_rng(0)
    u, v = generator.standard_normal((2, size)).astype(np.float32)
    products = []
    for seed in range(draws):
        first, second = fold(size, places, seed)(torch.from_numpy(np.stack([u, v])))
        products.append(float(first @ second))
    pairs = np.multiply.outer(u, v)
    meeting = pairs + pairs.T  # what a pair adds, times a random sign, where it meets
    apart = np.arange(size)[:, None] // places < np.arange(size) // places
    variance = float((meeting[apart] ** 2).sum()) / places
    gaussian = float((u @ u) * (v @ v) + (u @ v) ** 2) / places
    assert variance < gaussian
    # Standard errors: of a mean σ/√n; of a variance about σ² √(3/n), the tails being a little heavier than normal.
    assert abs(np.mean(products) - u @ v) < 5 * np.sqrt(variance / draws)
    assert abs(np.var(products) / variance - 1) < 5 * np.sqrt(3 / draws)


def test_long_sides_get_more_places() -> None:
    """A vocabulary's side is folded into 8 p places: so many numbers tell its entries apart, not p."""
    name, p = "embedding", 2
    for shape, kept in (((80, 10), 16 * 2), ((79, 10), 2 * 2), ((10, 80), 2 * 16), ((12, 1), 12 * 1)):
        projection = TwoSided({name: shape}, 1000, 0, CPU, p)
        projection.begin(1)
        assert projection.part(name).shape == (1, kept)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float16, 1e-6), (torch.bfloat16, 2**-7)])
def test_a_fold_is_its_matrix_in_every_precision(dtype: torch.dtype, rounding: float) -> None:
    """Additions, on a CPU, give the same as a product with the matrix, on other devices."""
    values = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    folded = fold(70, 16)
    product = (values @ folded.matrix(dtype)).float()  # rounded once to the dtype, twice at most
    assert folded(values).dtype == torch.float32
    scale = values.float().abs().sum(1).max()
    assert (folded(values) - values.float() @ folded.matrix(torch.float32)).abs().max() < 1e-6 * scale
    if dtype != torch.float16:
        assert (folded(values) - product).abs().max() < rounding * scale


@pytest.mark.parametrize("p", [3, 8, 40])  # an expert's rows in several runs; in one that wraps; all experts' whole
def test_experts_are_summed_as_the_whole_gradient_is(p: int) -> None:
    """Against every sample's gradient, formed pair by pair; some experts and samples have no pair of each other."""
    B, per_sample, E, m, n = 3, 10, 5, 6, 4
    generator = torch.Generator().manual_seed(0)
    experts = torch.randint(0, E - 1, (B * per_sample,), generator=generator)
    experts[:per_sample] %= 2
    routing = Routing.of(experts, E, B)
    rows, columns = (torch.randn(len(experts), size, generator=generator) for size in (m, n))
    whole = torch.zeros(B, E, m, n, dtype=torch.float64)
    for place, pair in enumerate(routing.order.tolist()):
        whole[pair // per_sample, experts[pair]] += torch.outer(rows[place], columns[place]).double()

    projection = TwoSided({"w": (E, m, n)}, 8, 0, CPU, p)
    projection.begin(B)
    projection.full("w", whole.float())
    expected = projection.part("w").clone()
    projection.begin(B)
    kept = projection.keep("w", 1, columns[None])[0]
    projection.outer_of_experts("w", rows, kept, routing)
    torch.testing.assert_close(projection.part("w"), expected)

    fold = projection._sides["w", 0]  # as other devices do it
    factors = routing.apart(rows) if fold is None else fold.of_experts(rows, routing)
    found = routing.by_sample(factors).transpose(1, 2) @ routing.by_sample(kept)
    torch.testing.assert_close(found.flatten(1), expected)


def test_every_device_folds_alike() -> None:
    """Numbers in two precisions, as other devices have them; a CPU has float32 alone."""
    projection = TwoSided(SHAPES, 16, 0, CPU, 4)
    projection.begin(3)
    for name in SHAPES:
        part = torch.randn(projection.part(name).shape, generator=torch.Generator().manual_seed(len(name)))
        projection._parts[name] = part.bfloat16().float()
    mixed = {name: part.bfloat16() if name < "m" else part for name, part in projection._parts.items()}
    torch.testing.assert_close(projection._by_sample(mixed), projection.finish())
