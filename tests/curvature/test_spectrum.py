"""The spectrum against a dense eigendecomposition and the paper's formulas written out.

M validation samples, N pool samples, R sketch size, r rank, s stiff directions.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.curvature import Spectrum
from reference import algorithm_1

Float = NDArray[np.float64]

SHAPES = [(1, 6), (5, 12), (11, 12), (12, 12), (13, 12), (60, 12), (4, 1)]  # (M, R): fewer, as many, more


def anisotropic(M: int, R: int, seed: int = 0) -> Float:
    """Sketches whose directions differ tenfold in length, so that λ spans about two orders of magnitude."""
    return np.random.default_rng(seed).normal(size=(M, R)) * np.geomspace(1.0, 0.1, R)


def with_energies(energies: list[float], M: int, R: int) -> Float:
    """Sketches along axes with these eigenvalues, one sample each; only the square roots round."""
    z = np.zeros((M, R))
    for j, energy in enumerate(energies):
        z[j, j] = np.sqrt(energy * M)
    return z


@pytest.mark.parametrize(("M", "R"), SHAPES)
def test_eigenpairs_match_the_dense_decomposition(M: int, R: int) -> None:
    z = anisotropic(M, R)
    spectrum = Spectrum.from_sketches(z)
    dense = np.linalg.eigvalsh(z.T @ z / M)[::-1]
    r = min(M, R)
    assert spectrum.eigenvalues.shape == (r,)
    assert spectrum.eigenvectors.shape == (R, r)
    assert spectrum.num_validation == M
    assert np.all(np.diff(spectrum.eigenvalues) <= 0)
    # eigh is exact to 1e-16 of the largest eigenvalue; these shapes lose at most two digits more in the products.
    np.testing.assert_allclose(spectrum.eigenvalues, dense[:r], atol=1e-14 * dense[0])
    # A vector through the Gram matrix has an error of 1e-16 √(λ₁/λ_j) and one of 1e-16 λ₁/λ_j in its length.
    slack = 1e-14 * spectrum.eigenvalues[0] / spectrum.eigenvalues[-1]
    V = spectrum.eigenvectors
    np.testing.assert_allclose(V.T @ V, np.eye(r), atol=slack)
    np.testing.assert_allclose((V * spectrum.eigenvalues) @ V.T, z.T @ z / M, atol=slack * dense[0])


@pytest.mark.parametrize("energy", [0.3, 0.945, 0.999])
@pytest.mark.parametrize(("M", "R"), SHAPES)
def test_split_matches_algorithm_1(M: int, R: int, energy: float) -> None:
    validation, pool = anisotropic(M, R), anisotropic(9, R, seed=1)
    spectrum = Spectrum.from_sketches(validation, energy)
    expected = algorithm_1(validation, pool, energy)
    assert spectrum.num_stiff == expected.num_stiff
    assert spectrum.stiff.shape == (R, expected.num_stiff)
    # Projectors of eigenspaces are known to 1e-16 λ₁ / gap; gaps here are above 1e-4 of λ₁.
    np.testing.assert_allclose(spectrum.stiff_cost(pool), expected.cost, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(spectrum.flat(pool), expected.flat, atol=1e-11)


def test_cost_and_flat_part_match_explicit_matrices() -> None:
    z, pool = anisotropic(30, 8), anisotropic(5, 8, seed=2)
    spectrum = Spectrum.from_sketches(z, energy=0.8)
    V, eigenvalues = spectrum.stiff, spectrum.eigenvalues[: spectrum.num_stiff]
    stiff_matrix = V @ np.diag(eigenvalues) @ V.T  # zᵀ V Λ Vᵀ z = Σ λ_j (v_jᵀ z)²
    # The same products in another order.
    np.testing.assert_allclose(spectrum.stiff_cost(pool), np.diag(pool @ stiff_matrix @ pool.T), rtol=1e-12)
    np.testing.assert_allclose(spectrum.flat(pool), pool @ (np.eye(8) - V @ V.T), atol=1e-13)
    np.testing.assert_allclose(spectrum.flat(pool) @ V, 0.0, atol=1e-13)
    np.testing.assert_allclose(spectrum.flat(spectrum.flat(pool)), spectrum.flat(pool), atol=1e-13)
    assert np.all(spectrum.stiff_cost(pool) >= 0)


def test_what_validation_never_saw_is_flat_and_free() -> None:
    spectrum = Spectrum.from_sketches([[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], energy=1.0)
    unseen = np.array([[0.0, 0.0, 3.0, -4.0]])
    np.testing.assert_allclose(spectrum.stiff_cost(unseen), 0.0, atol=1e-30)  # 1e-16 of an entry, squared
    np.testing.assert_allclose(spectrum.flat(unseen), unseen, rtol=1e-15)


# λ = 8, 4, 2, 1, 1 out of 16: shares 0.5, 0.75, 0.875, 0.9375, 1. A rounded eigenvalue must not cost a direction.
@pytest.mark.parametrize(
    ("energy", "num_stiff"),
    [
        (1e-9, 1),
        (0.5, 1),
        (0.5 + 1e-9, 2),
        (0.75, 2),
        (0.875, 3),
        (0.9375 - 1e-9, 4),
        (0.9375, 4),
        (0.945, 5),
        (1.0, 5),
    ],
)
@pytest.mark.parametrize(("M", "R"), [(16, 32), (16, 16), (64, 16)])
def test_elbow_where_energies_add_up_exactly(energy: float, num_stiff: int, M: int, R: int) -> None:
    spectrum = Spectrum.from_sketches(with_energies([8.0, 4.0, 2.0, 1.0, 1.0], M, R), energy)
    assert spectrum.num_stiff == num_stiff
    np.testing.assert_allclose(spectrum.eigenvalues, [8.0, 4.0, 2.0, 1.0, 1.0], rtol=1e-14)  # one square root each


@pytest.mark.parametrize(("M", "R", "energy"), [(10, 40, 0.9), (10, 10, 0.9), (10, 40, 0.3)])
def test_elbow_of_equal_eigenvalues_does_not_hang_on_rounding(M: int, R: int, energy: float) -> None:
    # Tenths do not add up exactly in binary: 9 of 10 are 0.9 of the energy all the same, and 3 are 0.3.
    assert Spectrum.from_sketches(with_energies([0.1] * 10, M, R), energy).num_stiff == round(10 * energy)


@pytest.mark.parametrize(("M", "R"), [(6, 20), (20, 6), (6, 6)])
def test_rank_deficient_sketches_lose_their_null_space_only(M: int, R: int) -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(M, 3)) @ rng.normal(size=(3, R))  # rank 3
    spectrum = Spectrum.from_sketches(z, energy=1.0)
    assert (len(spectrum.eigenvalues), spectrum.num_stiff) == (3, 3)
    np.testing.assert_allclose(spectrum.flat(z), 0.0, atol=1e-12)  # λ₁/λ₃ is below 1e2 here: four digits in hand
    np.testing.assert_allclose(spectrum.eigenvectors.T @ spectrum.eigenvectors, np.eye(3), atol=1e-12)


def test_duplicated_validation_samples_change_nothing() -> None:
    z = anisotropic(5, 8)
    once, twice = Spectrum.from_sketches(z), Spectrum.from_sketches(np.concatenate([z, z]))
    assert once.num_stiff == twice.num_stiff
    np.testing.assert_allclose(once.eigenvalues, twice.eigenvalues, rtol=1e-12)  # λ₁/λ₅ is below 1e3
    pool = anisotropic(4, 8, seed=5)
    np.testing.assert_allclose(once.stiff_cost(pool), twice.stiff_cost(pool), rtol=1e-11)  # as above


def test_one_sample() -> None:
    spectrum = Spectrum.from_sketches([[0.0, 3.0, 4.0]])
    assert spectrum.num_stiff == 1
    np.testing.assert_allclose(spectrum.eigenvalues, [25.0], rtol=1e-15)
    np.testing.assert_allclose(np.abs(spectrum.stiff[:, 0]), [0.0, 0.6, 0.8], atol=1e-15)
    np.testing.assert_allclose(spectrum.stiff_cost([[0.0, 3.0, 4.0]]), [25.0 * 25.0], rtol=1e-14)
    np.testing.assert_allclose(spectrum.flat([[0.0, 3.0, 4.0]]), 0.0, atol=1e-14)


def test_reduced_precision_input_is_worked_on_in_float64() -> None:
    z = anisotropic(6, 9).astype(np.float16)
    half, double = Spectrum.from_sketches(z), Spectrum.from_sketches(z.astype(np.float64))
    assert np.array_equal(half.eigenvalues, double.eigenvalues)
    assert np.array_equal(half.eigenvectors, double.eigenvectors)
    assert half.stiff_cost(z).dtype == half.flat(z).dtype == np.float64


@pytest.mark.parametrize(("M", "R"), [(5, 12), (60, 12)])
@pytest.mark.parametrize("name", ["newton", "flat step", "identity", "curvature itself"])
def test_apply_matches_the_dense_matrix_function(name: str, M: int, R: int) -> None:
    z, vector = anisotropic(M, R), np.random.default_rng(6).normal(size=R)
    fisher = z.T @ z / M
    damping = 0.1 * np.linalg.eigvalsh(fisher)[-1]
    function = {
        "newton": lambda curvature: 1.0 / (curvature + damping),
        "flat step": lambda curvature: (curvature < damping).astype(np.float64),
        "identity": np.ones_like,
        "curvature itself": lambda curvature: curvature,
    }[name]
    eigenvalues, V = np.linalg.eigh(fisher)
    expected = V @ (function(np.maximum(eigenvalues, 0.0)) * (V.T @ vector))  # the null space comes as ±1e-17
    # Newton's slope is 1/damping² ≈ 1e2 at λ known to 1e-16; projectors are known to 1e-12, as above.
    np.testing.assert_allclose(Spectrum.from_sketches(z).apply(function, vector), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "energy", "reason"),
    [
        (np.zeros((0, 3)), 0.9, "at least one sample"),
        (np.zeros((3, 0)), 0.9, "at least one sample"),
        (np.ones(3), 0.9, "must have shape"),
        (np.ones((1, 2, 3)), 0.9, "must have shape"),
        ([[1.0, np.nan]], 0.9, "must be finite"),
        ([[1.0, np.inf]], 0.9, "must be finite"),
        (np.zeros((3, 2)), 0.9, "all validation gradients are zero"),
        (np.zeros((2, 3)), 0.9, "all validation gradients are zero"),
        (np.ones((2, 2)), 0.0, "energy must be in"),
        (np.ones((2, 2)), -0.1, "energy must be in"),
        (np.ones((2, 2)), 1.0 + 1e-9, "energy must be in"),
        (np.ones((2, 2)), np.nan, "energy must be in"),
    ],
)
def test_unusable_input_is_refused(values: object, energy: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Spectrum.from_sketches(values, energy)


def test_repr_says_how_stiff() -> None:
    spectrum = Spectrum.from_sketches(with_energies([6.0, 2.0], 4, 4), energy=0.7)
    assert repr(spectrum) == "Spectrum(1 stiff of rank 2, 75.0% of the energy, from 4 validation samples)"
