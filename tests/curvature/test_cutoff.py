"""Cutoff, bands and held-out costs against loops over the definitions.

M validation samples, N samples, R sketch size, s stiff directions, m bands.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.curvature import Spectrum, cross_energies, cross_fit, energy_share, fixed_number, widest_gap

Float = NDArray[np.float64]


def spectrum_of(*eigenvalues: float) -> Spectrum:
    values = np.array(eigenvalues)
    return Spectrum(values, np.eye(len(values)), len(values), 99)


@pytest.mark.parametrize(
    ("eigenvalues", "num_stiff"),
    [
        ([9.0, 8.0, 2.0, 1.0], 2),
        ([9.0, 3.0, 1.0], 1),  # of equal gaps the first
        ([0.9, 0.3, 0.1], 1),  # the same: its second ratio is larger by rounding alone
        ([5.0], 1),
        ([1.0, 1.0, 1.0], 1),
        ([9.0, 8.0, 7.0, 1e-9], 3),
        ([100.0, 30.0, 10.0, 4.0, 1e-12], 1),  # the tail lies below the mean: its gap is no elbow
    ],
)
def test_the_widest_gap(eigenvalues: list[float], num_stiff: int) -> None:
    assert widest_gap(np.array(eigenvalues)) == num_stiff


def test_a_fixed_number_is_at_most_all() -> None:
    assert [fixed_number(count)(np.array([3.0, 2.0, 1.0])) for count in (1, 2, 3, 4)] == [1, 2, 3, 3]
    with pytest.raises(ValueError, match="at least 1"):
        fixed_number(0)


def test_a_spectrum_is_split_anew() -> None:
    z = np.random.default_rng(0).normal(size=(20, 6)) * np.geomspace(1, 0.1, 6)
    for energy in (0.3, 0.9, 1.0):
        again = Spectrum.from_sketches(z).split(energy_share(energy))
        assert again.num_stiff == Spectrum.from_sketches(z, energy).num_stiff
    assert Spectrum.from_sketches(z).split(fixed_number(4)).stiff.shape == (6, 4)


@pytest.mark.parametrize(
    ("eigenvalues", "num_bands", "ends"),
    [
        ([4.0, 3.0, 2.0, 1.0], 1, [4]),
        ([4.0, 3.0, 2.0, 1.0], 2, [2, 4]),  # 5 of 10 is passed by the second
        ([1.0] * 6, 3, [2, 4, 6]),
        ([0.1] * 10, 10, list(range(1, 11))),  # tenths that do not add up in binary
        ([97.0, 1.0, 1.0, 1.0], 3, [1, 2, 4]),  # one that holds everybody's share leaves a direction for each
        ([1.0, 1e-3, 1e-3], 3, [1, 2, 3]),
        ([1e-3, 1e-4, 1.0], 2, [2, 3]),  # whatever their order, one is left for the last
    ],
)
def test_bands_have_equal_shares_of_the_energy(eigenvalues: list[float], num_bands: int, ends: list[int]) -> None:
    bands = spectrum_of(*eigenvalues).bands(num_bands)
    assert [band.stop for band in bands] == ends
    assert [band.start for band in bands] == [0, *ends[:-1]]


@pytest.mark.parametrize("num_bands", [0, 4])
def test_bands_that_cannot_be(num_bands: int) -> None:
    with pytest.raises(ValueError, match="1 to 3 bands"):
        spectrum_of(3.0, 2.0, 1.0).bands(num_bands)


@pytest.mark.parametrize("num_bands", [1, 2, 5])
def test_band_costs_by_their_formula(num_bands: int) -> None:
    rng = np.random.default_rng(1)
    spectrum, pool = Spectrum.from_sketches(rng.normal(size=(30, 8)), 0.9), rng.normal(size=(7, 8))
    costs = spectrum.band_costs(pool, num_bands)
    assert costs.shape == (7, num_bands)
    for i, z in enumerate(pool):
        for b, band in enumerate(spectrum.bands(num_bands)):
            expected = sum(
                spectrum.eigenvalues[j] * (spectrum.eigenvectors[:, j] @ z) ** 2 for j in range(band.start, band.stop)
            )
            assert costs[i, b] == pytest.approx(expected, rel=1e-12)  # sums in another order
    np.testing.assert_allclose(costs.sum(axis=1), spectrum.stiff_cost(pool), rtol=1e-12)


@pytest.mark.parametrize("num_bands", [1, 3])
def test_cross_fit_by_its_definition(num_bands: int) -> None:
    z = np.random.default_rng(2).normal(size=(21, 6)) * np.geomspace(1, 0.2, 6)
    halves = (Spectrum.from_sketches(z[0::2]), Spectrum.from_sketches(z[1::2]))
    crossed = cross_fit(z, halves, num_bands)
    for i, row in enumerate(z):
        own, other = halves[i % 2], halves[1 - i % 2]
        assert np.array_equal(crossed.in_sample[i], own.band_costs(row[None], num_bands)[0]) or np.allclose(
            crossed.in_sample[i], own.band_costs(row[None], num_bands)[0], rtol=1e-12
        )
        np.testing.assert_allclose(crossed.held_out[i], other.band_costs(row[None], num_bands)[0], rtol=1e-12)
    assert crossed.overfit == pytest.approx(crossed.in_sample.sum() / crossed.held_out.sum())


def test_few_samples_overfit_and_many_do_not() -> None:
    rng = np.random.default_rng(3)

    def overfit(M: int) -> float:
        z = rng.normal(size=(M, 40))
        return cross_fit(z, (Spectrum.from_sketches(z[0::2]), Spectrum.from_sketches(z[1::2]))).overfit

    assert overfit(20) > 2
    assert overfit(4000) < 1.1


def test_samples_that_the_other_half_never_saw_cost_nothing() -> None:
    z = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    crossed = cross_fit(z, (Spectrum.from_sketches(z[0::2]), Spectrum.from_sketches(z[1::2])))
    np.testing.assert_array_equal(crossed.held_out, 0.0)
    assert crossed.overfit == float("inf")


def test_energies_of_directions_by_their_definition() -> None:
    z = np.random.default_rng(7).normal(size=(9, 6))  # an odd number: halves of 5 and 4
    halves = (Spectrum.from_sketches(z[0::2]), Spectrum.from_sketches(z[1::2]))
    in_sample, held_out = cross_energies(z, halves)
    for j in range(4):
        own, other = [], []
        for spectrum, samples, rest in ((halves[0], z[0::2], z[1::2]), (halves[1], z[1::2], z[0::2])):
            direction = spectrum.eigenvectors[:, j]
            own.append(sum(float(direction @ row) ** 2 for row in samples) / len(samples))
            other.append(sum(float(direction @ row) ** 2 for row in rest) / len(rest))
        assert in_sample[j] == pytest.approx(np.mean(own), rel=1e-12)
        assert held_out[j] == pytest.approx(np.mean(other), rel=1e-12)
    assert in_sample.shape == held_out.shape == (4,)
    # Of the empirical Fisher the former is what its eigenvalues are.
    np.testing.assert_allclose(in_sample, np.mean([half.eigenvalues[:4] for half in halves], axis=0), rtol=1e-10)
