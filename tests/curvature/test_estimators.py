"""Every estimator of curvature against the matrix in full, float64, on models of some hundred parameters.

M validation samples, D parameters, R sketch size, V vocabulary, k eigenpairs.
"""

from __future__ import annotations

from itertools import product as combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from curvature.dense import (
    LOSSLESS,
    V,
    dense_ggn,
    dense_hessian,
    documents,
    exact_products,
    tiny_gpt2,
    tiny_llama,
)
from direct_anneal.curvature import MatrixFree, SecondMoment, estimate, monte_carlo_sketches
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import labelled
from gradients.tiny_models import FAMILIES, explicit_matrix

Float = NDArray[np.float64]

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}
MATRICES = {"ggn": dense_ggn, "hessian": dense_hessian}
TEXTS = documents(5, 9, 2, 4)
WINDOW = 7  # one of the texts is longer

# Sums in another order, of the largest entry: Llama's norms and softmax go through float32 in every precision.
ROUNDING = {"llama": 1e-6, "gpt2": 1e-12}
# Sketches are float32: S v is known to about 1e-7 of its length, and k of them are orthonormalised.
SKETCHED = 1e-5


def lossless(model: nn.Module) -> GradientSketcher:
    """S of orthonormal columns: a place of its own, up to a sign, for every parameter."""
    sketcher = GradientSketcher(model, LOSSLESS, factor_size=64)
    S = explicit_matrix(sketcher)
    np.testing.assert_array_equal(S.T @ S, np.eye(S.shape[1]))
    return sketcher


def matrix_free(sketcher: GradientSketcher, matrix: str, k: int = 6, **options: object) -> MatrixFree:
    given = {"max_length": WINDOW, "batch_tokens": 32, "rtol": 1e-8} | options
    return MatrixFree(sketcher, TEXTS, matrix, k, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("family", MODELS)
class TestProducts:
    def test_the_operator_is_the_dense_matrix(self, family: str, matrix: str) -> None:
        model = MODELS[family]()
        operator = matrix_free(GradientSketcher(model, 8), matrix).operator(np.arange(len(TEXTS)))
        dense = MATRICES[matrix](model, TEXTS, WINDOW)
        entries = np.random.default_rng(0).choice(len(dense), 6, replace=False)
        found, dense = operator @ np.eye(len(dense))[:, entries], dense[:, entries]
        np.testing.assert_allclose(found, dense, rtol=0, atol=ROUNDING[family] * np.abs(dense).max())

    def test_a_part_of_the_samples_has_a_matrix_of_its_own(self, family: str, matrix: str) -> None:
        model, part = MODELS[family](), np.array([3, 1])
        operator = matrix_free(GradientSketcher(model, 8), matrix).operator(part)
        dense = MATRICES[matrix](model, [TEXTS[i] for i in part], WINDOW)
        v = np.random.default_rng(0).normal(size=len(dense))
        # Sums of D such entries.
        slack = ROUNDING[family] * np.sqrt(len(dense)) * np.abs(dense).max()
        np.testing.assert_allclose(operator @ v, dense @ v, rtol=0, atol=slack)

    def test_batches_change_no_more_than_rounding(self, family: str, matrix: str) -> None:
        sketcher = GradientSketcher(MODELS[family](), 8)
        v = np.random.default_rng(1).normal(size=sum(p.numel() for p in sketcher.model.parameters()))
        one, all_ = (
            matrix_free(sketcher, matrix, batch_tokens=size).operator(np.arange(len(TEXTS))) @ v for size in (1, 999)
        )
        np.testing.assert_allclose(one, all_, rtol=0, atol=ROUNDING[family] * np.abs(one).max())

    def test_the_spectrum_is_the_dense_one(self, family: str, matrix: str) -> None:
        sketcher = lossless(MODELS[family]())
        k = 6
        spectrum = matrix_free(sketcher, matrix, k).spectrum(np.arange(len(TEXTS)))
        eigenvalues, vectors = np.linalg.eigh(MATRICES[matrix](sketcher.model, TEXTS, WINDOW))
        eigenvalues, vectors = eigenvalues[::-1][:k], vectors[:, ::-1][:, :k]
        # By Weyl an eigenvalue moves no more than the matrix, some D entries of it; Lanczos adds less.
        slack = ROUNDING[family] * 10 * eigenvalues[0]
        np.testing.assert_allclose(spectrum.eigenvalues, eigenvalues, rtol=1e-8, atol=slack)
        assert np.min(-np.diff(eigenvalues)) > 1e-3 * eigenvalues[0], "these eigenvectors are not to be told apart"
        alignment = np.abs(np.sum(spectrum.eigenvectors * (explicit_matrix(sketcher) @ vectors), axis=0))
        np.testing.assert_allclose(alignment, 1.0, atol=SKETCHED)
        np.testing.assert_allclose(spectrum.eigenvectors.T @ spectrum.eigenvectors, np.eye(k), atol=1e-14)
        assert spectrum.num_validation == len(TEXTS)

    def test_a_lossy_sketch_turns_vectors_and_keeps_eigenvalues(self, family: str, matrix: str) -> None:
        """S v, orthonormalised from the stiffest on: the span of the first j is theirs."""
        sketcher = GradientSketcher(MODELS[family](), 48, "gaussian", seed=3)
        spectrum = matrix_free(sketcher, matrix, 4).spectrum(np.arange(len(TEXTS)))
        eigenvalues, vectors = np.linalg.eigh(MATRICES[matrix](sketcher.model, TEXTS, WINDOW))
        slack = ROUNDING[family] * 10 * eigenvalues[-1]
        np.testing.assert_allclose(spectrum.eigenvalues, eigenvalues[::-1][:4], rtol=1e-8, atol=slack)
        sketched = explicit_matrix(sketcher) @ vectors[:, ::-1][:, :4]
        for j in range(1, 5):
            own = np.linalg.qr(sketched[:, :j])[0]
            overlap = np.linalg.norm(own.T @ spectrum.eigenvectors[:, :j]) ** 2
            assert overlap == pytest.approx(j, abs=SKETCHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_go_through_every_family(family: str) -> None:
    model = FAMILIES[family]().double()
    sketcher = GradientSketcher(model, 8)
    texts = documents(6, 4, seed=2)
    # Autograd gives an embedding's padding row no gradient: products must leave it out on both sides.
    learned = {name: torch.ones_like(p) for name, p in sketcher.parameters.items()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            learned[f"{name}.weight"][module.padding_idx] = 0
    mask = torch.cat([part.flatten() for part in learned.values()]).numpy()
    u, v = np.random.default_rng(0).normal(size=(2, len(mask)))
    # Llama's norms, and others', are float32 inside, as above.
    for matrix, expected in exact_products(model, texts, v * mask).items():
        free = MatrixFree(sketcher, texts, matrix, 1, max_length=32, batch_tokens=32)  # type: ignore[arg-type]
        operator = free.operator(np.arange(2))
        assert np.linalg.norm(operator @ (v * mask) - expected) <= 1e-6 * np.linalg.norm(expected)
        there, back = operator @ v, operator @ u
        assert abs(u @ there - v @ back) <= 1e-6 * np.linalg.norm(u) * np.linalg.norm(there)


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_prompt_is_seen_and_not_predicted(matrix: str) -> None:
    model, (text,) = tiny_gpt2(), documents(7, seed=3)
    sketcher = GradientSketcher(model, 8)
    free = MatrixFree(
        sketcher,
        [text],
        matrix,
        1,
        labels=[labelled(text, 4)],
        max_length=8,
        batch_tokens=32,  # type: ignore[arg-type]
    )
    # The loss from place 4 on is 6/3 of the mean of all six, less the mean of the first three.
    dense = MATRICES[matrix]
    expected = (6 * dense(model, [text]) - 3 * dense(model, [text[:4]])) / 3
    v = np.random.default_rng(0).normal(size=len(expected))
    found = free.operator(np.arange(1)) @ v
    assert np.linalg.norm(found - expected @ v) <= 1e-11 * np.linalg.norm(expected @ v)


def test_where_the_model_bends_no_more_than_its_loss_hessian_and_ggn_are_one() -> None:
    """With only the last layer to learn, logits are linear in the parameters."""
    model = tiny_llama()
    for name, p in model.named_parameters():
        p.requires_grad_(name == "lm_head.weight")
    sketcher = lossless(model)
    spectra = [matrix_free(sketcher, matrix, 5).spectrum(np.arange(len(TEXTS))) for matrix in MATRICES]
    np.testing.assert_allclose(spectra[0].eigenvalues, spectra[1].eigenvalues, rtol=1e-6)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"lm_head.weight"}


def test_negative_curvature_is_flat() -> None:
    """All eigenpairs of a model that learns its attention alone."""
    model = tiny_gpt2()
    for name, p in model.named_parameters():
        p.requires_grad_("c_attn" in name)
    sketcher = lossless(model)
    dense = dense_hessian(model, TEXTS, WINDOW)
    eigenvalues, vectors = np.linalg.eigh(dense)
    assert eigenvalues[0] < -0.01 * eigenvalues[-1], "this model has no direction of negative curvature"
    spectrum = matrix_free(sketcher, "hessian", len(dense)).spectrum(np.arange(len(TEXTS)))
    assert np.all(spectrum.eigenvalues > 0)
    clear = eigenvalues[eigenvalues > 1e-9 * eigenvalues[-1]][::-1]  # rounding may turn others either way
    np.testing.assert_allclose(spectrum.eigenvalues[: len(clear)], clear, rtol=1e-6)
    downward = (explicit_matrix(sketcher) @ vectors[:, :1]).T
    everything = spectrum.split(len)
    assert everything.stiff_cost(downward)[0] <= SKETCHED**2 * eigenvalues[-1]
    np.testing.assert_allclose(everything.flat(downward), downward, atol=SKETCHED)


@pytest.mark.parametrize("matrix", MATRICES)
def test_float32_models_are_close_to_their_float64_selves(matrix: str) -> None:
    model = tiny_llama()
    double = matrix_free(lossless(model), matrix, 4).spectrum(np.arange(len(TEXTS)))
    single = matrix_free(lossless(model.float()), matrix, 4, rtol=1e-4).spectrum(np.arange(len(TEXTS)))
    np.testing.assert_allclose(single.eigenvalues, double.eigenvalues, rtol=1e-3)  # rtol, and some float32
    overlap = np.linalg.norm(single.eigenvectors.T @ double.eigenvectors) ** 2
    assert overlap == pytest.approx(4, abs=1e-2)  # vectors are known to rtol · λ / gap, here about 1e-3


class TestTheModelIsGivenBack:
    @pytest.mark.parametrize("matrix", MATRICES)
    def test_mode_flags_and_gradients(self, matrix: str) -> None:
        model = tiny_llama().train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        matrix_free(GradientSketcher(model, 8), matrix, 2).spectrum(np.arange(3))
        assert [module.training for module in model.modules()] == modes
        assert all(p.requires_grad and p.grad is None and type(p) is nn.Parameter for p in model.parameters())


class TestMonteCarlo:
    def test_its_mean_over_all_labels_is_the_ggn(self) -> None:
        """Weighted by their probability, over every label a text could have had: no sampling, no tolerance for it."""
        model = tiny_llama()
        sketcher = lossless(model)
        S = explicit_matrix(sketcher)
        texts = documents(3, 4, seed=5)
        expected = S @ dense_ggn(model, texts) @ S.T
        mean = np.zeros_like(expected)
        for text in texts:
            n = len(text) - 1
            ids = torch.from_numpy(text)[None]
            p = torch.softmax(model(input_ids=ids).logits[0, :-1], dim=1).detach().numpy()  # (n, V)
            drawn = np.array(list(combinations(range(V), repeat=n)))  # (Vⁿ, n)
            labels = torch.from_numpy(np.concatenate([np.zeros((len(drawn), 1), dtype=np.int64), drawn], axis=1))
            z = sketcher.sketch(ids.expand(len(drawn), -1), labels=labels).values.double().numpy()
            chance = np.prod(p[np.arange(n), drawn], axis=1)
            assert chance.sum() == pytest.approx(1.0)
            mean += n * (z.T * chance) @ z / len(texts)
        np.testing.assert_allclose(mean, expected, atol=SKETCHED * np.abs(expected).max())

    def test_labels_come_from_the_model_and_rows_weigh_root_n(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sketcher = lossless(tiny_llama())
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        real = GradientSketcher.sketch

        def recorded(self: GradientSketcher, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> object:
            seen.append((ids, labels))
            return real(self, ids, mask, labels)

        monkeypatch.setattr(GradientSketcher, "sketch", recorded)
        text = np.tile(documents(2, seed=1)[0], 2)
        found = monte_carlo_sketches(sketcher, [text], ["a"], max_length=4, batch_tokens=99)
        ((ids, labels),) = seen
        z = real(sketcher, ids, labels=labels).values.double().numpy()
        np.testing.assert_allclose(found, np.sqrt(3) * z, rtol=1e-6)

        # Many names, one text: labels fall as often as the model says. Four standard deviations.
        seen.clear()
        copies = 400
        names = [str(i) for i in range(copies)]
        monte_carlo_sketches(sketcher, [text] * copies, names, max_length=4, batch_tokens=10**6)
        drawn = torch.cat([labels for _, labels in seen])[:, 1:].numpy()  # (copies, 3)
        p = torch.softmax(sketcher.model(input_ids=torch.from_numpy(text)[None]).logits[0, :-1], 1).detach().numpy()
        for place in range(3):
            counts = np.bincount(drawn[:, place], minlength=V)
            assert np.all(np.abs(counts - copies * p[place]) <= 4 * np.sqrt(copies * p[place] * (1 - p[place])) + 1)

    def test_a_samples_draw_is_its_own(self) -> None:
        """Neither order, nor neighbours, nor batches: name, text and seed."""
        sketcher = GradientSketcher(tiny_llama(), 32)
        names = [f"text {i}" for i in range(len(TEXTS))]
        options = {"max_length": WINDOW, "batch_tokens": 20}

        def sketches(order: list[int], **changed: int) -> Float:
            texts, called = [TEXTS[i] for i in order], [names[i] for i in order]
            return monte_carlo_sketches(sketcher, texts, called, **(options | changed))

        all_, order = sketches([0, 1, 2, 3]), [3, 0]
        # The labels are equal; sketches are float32 sums over other batches.
        np.testing.assert_allclose(sketches(order), all_[order], atol=1e-6 * np.abs(all_).max())
        np.testing.assert_allclose(sketches([0, 1, 2, 3], batch_tokens=1), all_, atol=1e-6 * np.abs(all_).max())
        assert np.abs(sketches([0, 1, 2, 3], seed=1) - all_).max() > 0.01 * np.abs(all_).max()

    def test_windows_are_one_document(self) -> None:
        """√n times the mean over n tokens, n counted over windows; the same text as one window has other labels."""
        sketcher = lossless(tiny_llama())
        long = documents(7, seed=4)[0]
        whole = monte_carlo_sketches(sketcher, [long], ["a"], max_length=3, batch_tokens=99)
        S = explicit_matrix(sketcher)
        ggn = S @ dense_ggn(sketcher.model, [long], 3) @ S.T
        draws = [
            monte_carlo_sketches(sketcher, [long], ["a"], max_length=3, batch_tokens=99, seed=seed)[0]
            for seed in range(60)
        ]
        assert np.array_equal(draws[0], whole[0])
        lengths = np.square(draws).sum(axis=1)
        # E‖√n z‖² is the trace; four standard errors.
        assert abs(lengths.mean() - np.trace(ggn)) <= 4 * lengths.std() / np.sqrt(len(lengths))


def test_an_estimate_has_a_spectrum_of_each_half() -> None:
    z = np.random.default_rng(0).normal(size=(9, 5))
    found = estimate(SecondMoment(z), len(z))
    assert found.halves is not None
    for spectrum, part in zip((found.whole, *found.halves), (z, z[0::2], z[1::2]), strict=True):
        dense = np.linalg.eigvalsh(part.T @ part / len(part))[::-1]
        np.testing.assert_allclose(spectrum.eigenvalues, dense[: len(spectrum.eigenvalues)], rtol=1e-12)
        assert spectrum.num_validation == len(part)
    assert estimate(SecondMoment(z[:3]), 3).halves is None
    both = found.split(lambda eigenvalues: 2)
    assert both.halves is not None
    assert [spectrum.num_stiff for spectrum in (both.whole, *both.halves)] == [2, 2, 2]


class TestRefused:
    def test_a_model_in_half_precision(self) -> None:
        sketcher = GradientSketcher(tiny_llama().bfloat16(), 8)
        with pytest.raises(ValueError, match="float32 or float64"):
            matrix_free(sketcher, "ggn")

    def test_a_model_that_overflows(self) -> None:
        model = tiny_llama()
        with torch.no_grad():
            model.lm_head.weight[0, 0] = torch.inf
        with pytest.raises(ValueError, match="must be finite"):
            matrix_free(GradientSketcher(model, 8), "ggn").spectrum(np.arange(2))

    @pytest.mark.parametrize("matrix", MATRICES)
    def test_a_loss_that_is_flat(self, matrix: str) -> None:
        model = tiny_llama()
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        with pytest.raises(ValueError, match="upward nowhere"):
            matrix_free(GradientSketcher(model, 8), matrix).spectrum(np.arange(2))

    def test_lanczos_that_does_not_converge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("direct_anneal.curvature.lanczos._MAX_RESTARTS", 1)
        with pytest.raises(ValueError, match="ask for fewer"):
            matrix_free(GradientSketcher(tiny_llama(), 64), "hessian", 20, rtol=1e-12).spectrum(np.arange(4))
