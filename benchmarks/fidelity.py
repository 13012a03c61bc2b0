"""What a sketch does to a selection: two-sided sizes and R against exact gradients, beside seeds of the dense Gaussian.

    python benchmarks/fidelity.py [--model DIR] [--pool N] [--validation M] [--gaussian R]

Documents are the demo's, cut to one window; gradients are exact, by plain autograd. Columns:

    gram       ‖Ẑ Ẑᵀ − G Gᵀ‖ / ‖G Gᵀ‖ over pool and validation, Frobenius; "unit": the same for unit rows
    subspace   ‖U_sᵀ Û_s‖² / s: overlap of the stiff subspaces, seen from the validation samples (1 is equal)
    cost       Spearman correlation of the pool's stiff costs
    energy, descent   Jaccard overlap with the exact selection of a fifth of the pool, budget ratio 1
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from direct_anneal import SelectionProblem, Spectrum, solve
from direct_anneal.checkpoint import Checkpoint
from direct_anneal.corpus import Corpus, Fields, expand, prepare
from direct_anneal.demo import demo_model_path, write_demo_corpus
from direct_anneal.gradients.projections import DenseGaussian, Projection, TwoSided
from direct_anneal.selection import FeatureMatrix

Float = NDArray[np.float64]
DAMPING = 0.1


def exact_gradients(model: torch.nn.Module, documents: list[NDArray[np.int64]]) -> dict[str, torch.Tensor]:
    """Name → (n, *shape): the gradient of each document's mean loss."""
    parameters = dict(model.named_parameters())
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for tokens in documents:
        ids = torch.from_numpy(tokens)[None]
        loss = model(input_ids=ids, labels=ids).loss
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            rows[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def sketch(projection: Projection, gradients: dict[str, torch.Tensor]) -> Float:
    projection.begin(len(next(iter(gradients.values()))))
    for name, gradient in gradients.items():
        projection.full(name, gradient)
    return projection.finish().double().numpy()


def isometric(gradients: dict[str, torch.Tensor]) -> Float:
    """(n, n) coordinates with the very inner products of the gradients."""
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    gram = np.zeros((len(flat), len(flat)))
    for part in flat.split(1 << 16, dim=1):
        gram += (part.double() @ part.double().T).numpy()
    eigenvalues, eigenvectors = np.linalg.eigh(gram)
    return eigenvectors * np.sqrt(np.maximum(eigenvalues, 0.0))


class Outcome:
    """What follows from one set of sketches; the first M rows are the validation set's."""

    def __init__(self, values: Float, num_validation: int) -> None:
        validation, pool = values[:num_validation], values[num_validation:]
        self.gram = values @ values.T
        units = values / np.linalg.norm(values, axis=1, keepdims=True)
        self.unit_gram = units @ units.T
        self.spectrum = Spectrum.from_sketches(validation)
        self.left = np.linalg.svd(validation, full_matrices=False)[0]
        self.cost = self.spectrum.stiff_cost(pool)
        unit_cost = self.spectrum.stiff_cost(units[num_validation:])
        count = len(pool) // 5
        damping = DAMPING * self.spectrum.eigenvalues[0]
        target = self.spectrum.apply(lambda curvature: 1 / (curvature + damping), validation.mean(0))
        energy = SelectionProblem(
            FeatureMatrix(pool, removed=self.spectrum.stiff), self.cost, count, count * self.cost.mean()
        )
        descent = SelectionProblem(
            units[num_validation:], unit_cost, count, count * unit_cost.mean(), objective="descent", target=target
        )
        self.energy, self.descent = set(solve(energy).indices), set(solve(descent).indices)

    def row(self, exact: Outcome) -> str:
        stiff = exact.spectrum.num_stiff
        values = (
            np.linalg.norm(self.gram - exact.gram) / np.linalg.norm(exact.gram),
            np.linalg.norm(self.unit_gram - exact.unit_gram) / np.linalg.norm(exact.unit_gram),
            np.linalg.norm(exact.left[:, :stiff].T @ self.left[:, :stiff]) ** 2 / stiff,
            spearmanr(self.cost, exact.cost).statistic,
            len(self.energy & exact.energy) / len(self.energy | exact.energy),
            len(self.descent & exact.descent) / len(self.descent | exact.descent),
        )
        return " ".join(f"{value:9.3f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(demo_model_path()))
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--validation", type=int, default=160)
    parser.add_argument("--gaussian", type=int, default=2048, help="R of the Gaussian yardstick")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.model)
    model = checkpoint.load_model("cpu", "float32")
    window = min(checkpoint.context_length or 256, 256)
    with tempfile.TemporaryDirectory() as scratch:
        demo = write_demo_corpus(Path(scratch) / "data")
        parts = [
            (demo.validation, arguments.validation, "validation"),
            *((path, arguments.pool // len(demo.pool), "pool") for path in demo.pool),
        ]
        documents: list[NDArray[np.int64]] = []
        for path, count, role in parts:
            corpus: Corpus = prepare(
                expand([str(path)], role),
                role=role,
                fields=Fields(),
                load_tokenizer=checkpoint.load_tokenizer,
                tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
                vocab_size=checkpoint.vocab_size,
                max_length=window,
                directory=Path(scratch) / path.name,
            )
            documents += [corpus.tokens(i)[:window] for i in range(count)]
    gradients = exact_gradients(model, documents)
    shapes = {name: tuple(gradient.shape[1:]) for name, gradient in gradients.items()}
    device = torch.device("cpu")
    exact = Outcome(isometric(gradients), arguments.validation)
    print(f"{checkpoint.name}: {exact.spectrum!r}")
    print(f"{'':>22} {'gram':>9} {'unit':>9} {'subspace':>9} {'cost':>9} {'energy':>9} {'descent':>9}")
    for seed in (0, 1):
        wide = sketch(DenseGaussian(shapes, arguments.gaussian, seed, device), gradients)
        size = 256
        while size <= arguments.gaussian:
            narrow = wide[:, :size] * np.sqrt(arguments.gaussian / size)
            print(f"gaussian R={size:<5} seed {seed} {Outcome(narrow, arguments.validation).row(exact)}", flush=True)
            size *= 2
    for factor_size in (16, 32, 64):
        for size in (512, 1024, 2048, 4096):
            values = sketch(TwoSided(shapes, size, 0, device, factor_size), gradients)
            print(f"p={factor_size:<3} R={size:<13} {Outcome(values, arguments.validation).row(exact)}", flush=True)


if __name__ == "__main__":
    main()
