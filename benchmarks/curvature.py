"""Agreement of the estimators of curvature on trained models, and how far each has learned its samples.

    python benchmarks/curvature.py [--validation M] [--pool N] [--tokens T] [--pairs K] [--model DIR ...]

Models are the demo's and, where it lies beside the repository, stories260K; documents are the demo's, cut to T tokens.
All share one two-sided sketch, R = 2048. For every pair of estimators, and for the two halves of the documents:

    overlap    ‖U_sᵀ V_s‖² / s of the top s directions: 1 is the same subspace, s / R is chance
    angle      the largest principal angle between them, degrees
    λ ratio    geometric mean over the first ten of λ_j / λ_j' , each divided by its own λ₁
    cost       Spearman correlation of the pool's stiff costs at s = 10

and for each estimator the mean stiff cost in sample over held out, against M, with the ten stiffest directions.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from direct_anneal.curvature.windows import batches
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.stats import spearmanr

from direct_anneal import GradientSketcher, Spectrum
from direct_anneal.curvature import (
    CurvatureEstimator,
    MatrixFree,
    SecondMoment,
    cross_fit,
    estimate,
    fixed_number,
    monte_carlo_sketches,
)
from direct_anneal.data import Fields, expand, prepare
from direct_anneal.demo import demo_model_path, write_demo_corpus
from direct_anneal.model.checkpoint import Checkpoint

Float = NDArray[np.float64]
SIZES = (1, 2, 5, 10, 20, 50)
STORIES = Path(__file__).parents[2] / "shared" / "data" / "model" / "stories260K"
BATCH_TOKENS = 2048
STIFF = 10


def read(checkpoint: Checkpoint, path: Path, count: int, tokens: int, scratch: Path) -> list[NDArray[np.int64]]:
    corpus = prepare(
        expand([str(path)], "pool"),
        role="pool",
        fields=Fields(),
        load_tokenizer=checkpoint.load_tokenizer,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=tokens,
        directory=scratch / path.name,
    )
    step = max(1, corpus.num_samples // count)
    return [corpus.tokens(i)[:tokens] for i in range(0, corpus.num_samples, step)][:count]


def sketches(sketcher: GradientSketcher, documents: list[NDArray[np.int64]], tokens: int) -> Float:
    values = np.empty((len(documents), sketcher.projection.sketch_size))
    for batch in batches(documents, documents, max_length=tokens, batch_tokens=BATCH_TOKENS):
        values[batch.documents] = sketcher.sketch(batch.ids, batch.mask).values.numpy()
    return values


def compared(names: tuple[str, str], one: Spectrum, other: Spectrum, pool: Float) -> str:
    cells = []
    for size in SIZES:
        if size > min(len(one.eigenvalues), len(other.eigenvalues)):
            cells.append("         –")
            continue
        U, V = one.eigenvectors[:, :size], other.eigenvectors[:, :size]
        overlap = np.linalg.norm(U.T @ V) ** 2 / size
        cells.append(f"{overlap:5.2f} {np.degrees(subspace_angles(U, V)[0]):3.0f}°")
    ratios = [spectrum.eigenvalues[1:STIFF] / spectrum.eigenvalues[0] for spectrum in (one, other)]
    ratio = np.exp(np.mean(np.log(ratios[0] / ratios[1])))
    costs = [spectrum.split(fixed_number(STIFF)).stiff_cost(pool) for spectrum in (one, other)]
    return f"{' : '.join(names):>36}  {'  '.join(cells)}  {ratio:7.2f} {spearmanr(*costs).statistic:6.3f}"


def measure(model: str, arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint(model)
    sketcher = GradientSketcher(checkpoint.load_model("cpu", "float32"))
    tokens = min(arguments.tokens, checkpoint.context_length or arguments.tokens)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        demo = write_demo_corpus(scratch / "data")
        documents = read(checkpoint, demo.validation, arguments.validation, tokens, scratch)
        pool = [
            tokens_of
            for path in demo.pool
            for tokens_of in read(checkpoint, path, arguments.pool // len(demo.pool), tokens, scratch)
        ]
    z = sketches(sketcher, documents, tokens)
    z_pool = sketches(sketcher, pool, tokens)
    windows = {"max_length": tokens, "batch_tokens": BATCH_TOKENS}
    drawn = monte_carlo_sketches(sketcher, documents, [str(i) for i in range(len(documents))], **windows)
    products: dict[str, int] = dict.fromkeys(("ggn", "hessian"), 0)

    def counting(matrix: str) -> MatrixFree:
        def advance(amount: int) -> None:
            products[matrix] += amount

        return MatrixFree(sketcher, documents, matrix, arguments.pairs, advance=advance, **windows)  # type: ignore[arg-type]

    estimators: dict[str, CurvatureEstimator] = {
        "empirical": SecondMoment(z),
        "mc-fisher": SecondMoment(drawn),
        "ggn": counting("ggn"),
        "hessian": counting("hessian"),
    }
    found = {}
    for name, estimator in estimators.items():
        found[name] = estimate(estimator, len(documents))
    size = sum(p.numel() for p in sketcher.parameters.values())
    length = sum(map(len, documents))
    print(f"\n{Path(model).resolve().name}: D = {size:,}, M = {len(documents)}, {length:,} tokens, R = {z.shape[1]}")
    print(f"products for three spectra of {arguments.pairs} pairs: {products}")
    for name, one in found.items():
        shown = " ".join(f"{value / one.whole.eigenvalues[0]:.3f}" for value in one.whole.eigenvalues[:STIFF])
        print(f"{name:>10}  λ₁ {one.whole.eigenvalues[0]:.4g}, λ_j / λ₁: {shown}")
    heads = "  ".join(f"s = {s}".rjust(10) for s in SIZES)
    print(f"{'':>36}  {heads}  λ ratio   cost")
    for one, other in combinations(found, 2):
        print(compared((one, other), found[one].whole, found[other].whole, z_pool), flush=True)
    for name, one in found.items():
        assert one.halves is not None
        print(compared((f"{name}, half", "half"), *one.halves, z_pool), flush=True)
    print("in sample / held out at s = 10, M = " + ", ".join(map(str, counts(len(documents)))))
    for name, estimator in list(estimators.items())[:2]:
        ratios = []
        for count in counts(len(documents)):
            halves = [estimator.spectrum(np.arange(first, count, 2)).split(fixed_number(STIFF)) for first in (0, 1)]
            ratios.append(cross_fit(z[:count], (halves[0], halves[1])).overfit)
        print(f"{name:>10}  {'  '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)
    for name in ("ggn", "hessian"):
        halves = found[name].split(fixed_number(STIFF)).halves
        assert halves is not None
        print(f"{name:>10}  {cross_fit(z, halves).overfit:.2f} at M = {len(documents)}", flush=True)


def counts(most: int) -> list[int]:
    return [most // divisor for divisor in (8, 4, 2, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="instead of the demo's and stories260K")
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--pool", type=int, default=240)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=50)
    arguments = parser.parse_args()
    models = arguments.model or [str(demo_model_path())]
    if arguments.model is None:
        if STORIES.is_dir():
            models.insert(0, str(STORIES))
        else:
            print("stories260K is not beside the repository: left out")
    for model in models:
        measure(model, arguments)


if __name__ == "__main__":
    main()
