"""Effect of a sketch on a selection: two-sided sizes p and R against exact gradients, beside the dense Gaussian.

    python benchmarks/fidelity.py [--pool N] [--validation M] [--seeds S] [--cost] [--figure FILE.svg]

For the shipped model on the demo's documents, and for a stories-trained model on six domains where ../shared/data holds
them; documents are cut to one window. Gradients are exact, by plain autograd. A table in Markdown for each model, means
over seeds ± half their range:

    cost       CPU time of a sketch over forward and backward, GPT-2 / Llama of benchmarks/gradients.py (with --cost)
    gram       ‖Ẑ Ẑᵀ − G Gᵀ‖ / ‖G Gᵀ‖ over pool and validation, Frobenius; "unit": the same for unit rows
    angle      between the stiff subspaces, seen from the validation samples: arccos √(‖U_sᵀ Û_s‖² / s), degrees
    stiff      Spearman correlation of the pool's stiff costs
    energy, descent   the selection of a fifth of the pool at budget ratio 1, against that from exact gradients:
        J      Jaccard overlap
        worth  its objective in the exact features, over the exact selection's
        spent  its stiff cost in the exact features, over the exact selection's

Two laws make it cheap. A Gaussian matrix looks the same from every basis, so that a dense sketch of n gradients is
drawn in n coordinates instead of D. And a sketch of R numbers holds those of fewer: of a Gaussian the leading entries,
rescaled; of a CountSketch the sums of entries R/2 apart.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from direct_anneal import SelectionProblem, Spectrum, solve
from direct_anneal.data import expand
from direct_anneal.demo import demo_model_path, write_demo_corpus
from direct_anneal.gradients.projections import DenseGaussian, Projection, TwoSided
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.solver import FeatureMatrix

Float = NDArray[np.float64]
Gradients = dict[str, torch.Tensor]  # name → (n, *shape)
Row = dict[str, float]

CPU = torch.device("cpu")
FACTOR_SIZES = (8, 16, 32, 64, 128)
SKETCH_SIZES = (256, 512, 1024, 2048, 4096, 8192)
DAMPING = 0.1  # δ of the descent objective, in units of λ₁
WINDOW = 256

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES = SHARED / "model" / "stories260K"
TARGETS = ("tinystories", "dialogue")
OTHERS = ("books", "code_python", "math_word", "wiki")


# ---- gradients -----------------------------------------------------------------------------------------------------


def demo_texts(num_pool: int, num_validation: int) -> tuple[list[str], list[str]]:
    """Validation texts and pool texts of the demo."""
    with tempfile.TemporaryDirectory() as scratch:
        demo = write_demo_corpus(Path(scratch))
        pool = [text for path in demo.pool for text in spread(path, num_pool // len(demo.pool))]
        return spread(demo.validation, num_validation), pool


def stories_texts(num_pool: int, num_validation: int) -> tuple[list[str], list[str]]:
    """Validation texts of two domains, and pool texts of these and four others; no text is in both."""
    validation: list[str] = []
    pool: list[str] = []
    per_domain, held_out = num_pool // len(TARGETS + OTHERS), num_validation // len(TARGETS)
    for domain in TARGETS + OTHERS:
        num_held_out = held_out if domain in TARGETS else 0
        texts = spread(SHARED / "corpus" / f"{domain}.jsonl.zst", per_domain + num_held_out)
        order = np.random.default_rng(0).permutation(len(texts))
        validation += [texts[i] for i in order[:num_held_out]]
        pool += [texts[i] for i in order[num_held_out:]]
    return validation, pool


def spread(path: Path, count: int) -> list[str]:
    """Texts from all over a file: neighbours are often of one book."""
    (source,) = expand([str(path)], "pool")
    texts = [record["text"] for _, record in source.records() if isinstance(record, Mapping)]
    return texts[:: len(texts) // count][:count]


def exact_gradients(checkpoint: Checkpoint, texts: Sequence[str]) -> Gradients:
    """The gradient of each text's mean loss over its first window."""
    model, tokenizer = checkpoint.load_model("cpu", "float32"), checkpoint.load_tokenizer()
    parameters = dict(model.named_parameters())
    gradients = {name: torch.empty(len(texts), *parameter.shape) for name, parameter in parameters.items()}
    for i, text in enumerate(texts):
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"][:WINDOW])[None]
        loss = model(input_ids=ids, labels=ids).loss
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            gradients[name][i] = gradient
    return gradients


# ---- sketches ------------------------------------------------------------------------------------------------------


def gaussian_sketches(coordinates: Float, seed: int) -> Iterator[tuple[int, Float]]:
    """(R, sketches) of the dense Gaussian, from coordinates (n, n) that have the gradients' inner products."""
    widest = SKETCH_SIZES[-1]
    shape = {"coordinates": (1, len(coordinates))}
    values = sketch(DenseGaussian(shape, widest, seed, CPU), {"coordinates": torch.from_numpy(coordinates)[:, None]})
    for size in SKETCH_SIZES:
        yield size, values[:, :size] * np.sqrt(widest / size)


def two_sided_sketches(gradients: Gradients, factor_size: int, seed: int) -> Iterator[tuple[int, Float]]:
    shapes = {name: tuple(gradient.shape[1:]) for name, gradient in gradients.items()}
    values = sketch(TwoSided(shapes, SKETCH_SIZES[-1], seed, CPU, factor_size), gradients)
    for size in SKETCH_SIZES:
        yield size, values.reshape(len(values), -1, size).sum(1)


def sketch(projection: Projection, gradients: Gradients) -> Float:
    projection.begin(len(next(iter(gradients.values()))))
    for name, gradient in gradients.items():
        projection.full(name, gradient)
    return projection.finish().double().numpy()


def exact_gram(gradients: Gradients) -> Float:
    """G Gᵀ, shape (n, n)."""
    flat = [gradient.flatten(1).numpy() for gradient in gradients.values()]
    step = 1 << 16
    parts = (g[:, i : i + step].astype(np.float64) for g in flat for i in range(0, g.shape[1], step))
    gram: Float = sum((part @ part.T for part in parts), np.zeros((len(flat[0]), len(flat[0]))))
    return gram


def coordinates_of(gram: Float) -> Float:
    """(n, n) vectors with these inner products: nothing here depends on more, and few coordinates are quick."""
    eigenvalues, eigenvectors = np.linalg.eigh(gram)
    coordinates: Float = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return coordinates


# ---- what follows from them ----------------------------------------------------------------------------------------


class Outcome:
    """Spectrum, stiff costs and selections from inner products alone; the first M samples are the validation set."""

    def __init__(self, gram: Float, num_validation: int) -> None:
        values = coordinates_of(gram)
        validation, pool = values[:num_validation], values[num_validation:]
        norms = np.linalg.norm(values, axis=1)
        self.gram = gram
        self.unit_gram = gram / np.outer(norms, norms)
        self.spectrum = Spectrum.from_sketches(validation)
        self.left = np.linalg.svd(validation, full_matrices=False)[0]
        self.cost = self.spectrum.stiff_cost(pool)
        unit_cost = self.cost / np.square(norms[num_validation:])
        count = len(pool) // 5
        damping = DAMPING * self.spectrum.eigenvalues[0]
        self.problems = {
            "energy": SelectionProblem(
                FeatureMatrix(pool, removed=self.spectrum.stiff), self.cost, count, count * self.cost.mean()
            ),
            "descent": SelectionProblem(
                FeatureMatrix(pool, scale=1 / norms[num_validation:]),
                unit_cost,
                count,
                count * unit_cost.mean(),
                objective="descent",
                target=self.spectrum.apply(lambda curvature: 1 / (curvature + damping), validation.mean(0)),
            ),
        }
        self.chosen = {objective: solve(problem).indices for objective, problem in self.problems.items()}

    def compare(self, other: Outcome) -> Row:
        """Measure how near another outcome comes to this exact one."""
        stiff = self.spectrum.num_stiff
        overlap = float(np.linalg.norm(self.left[:, :stiff].T @ other.left[:, :stiff])) ** 2 / stiff
        return {
            "gram": float(np.linalg.norm(other.gram - self.gram) / np.linalg.norm(self.gram)),
            "unit": float(np.linalg.norm(other.unit_gram - self.unit_gram) / np.linalg.norm(self.unit_gram)),
            "angle": math.degrees(math.acos(math.sqrt(min(overlap, 1.0)))),
            "stiff": float(spearmanr(other.cost, self.cost).statistic),
            **self.judge(other.chosen),
        }

    def judge(self, chosen: dict[str, NDArray[np.intp]]) -> Row:
        """Overlap, worth and stiff cost of selections, by what is exact here."""
        row: Row = {}
        for objective, indices in chosen.items():
            own = self.chosen[objective]
            both = len(np.intersect1d(indices, own))
            value, spent = self._value(objective, indices)
            own_value, own_spent = self._value(objective, own)
            row[f"{objective} J"] = both / (len(indices) + len(own) - both)
            row[f"{objective} worth"] = value / own_value
            row[f"{objective} spent"] = spent / own_spent
        return row

    def judge_chance(self) -> Row:
        """Measure random selections of the same size."""
        rng = np.random.default_rng(0)
        count, number = len(self.chosen["energy"]), len(self.cost)
        rows = [self.judge(dict.fromkeys(self.chosen, rng.permutation(number)[:count])) for _ in range(100)]
        return {column: float(np.mean([row[column] for row in rows])) for column in rows[0]}

    def _value(self, objective: str, indices: NDArray[np.intp]) -> tuple[float, float]:
        problem = self.problems[objective]
        assert isinstance(problem.features, FeatureMatrix)
        total = problem.features.rows(indices).sum(0)
        value = total @ (total if problem.target is None else problem.target)
        return float(value), float(problem.stiff_cost[indices].sum())


# ---- tables and figure ---------------------------------------------------------------------------------------------

COLUMNS = (
    *("gram", "unit", "angle", "stiff"),
    *(f"{objective} {column}" for objective in ("energy", "descent") for column in ("J", "worth", "spent")),
)


def measure(gradients: Gradients, num_validation: int, seeds: int, costs: dict[str, str]) -> dict[str, dict[int, Row]]:
    """Print a model's table; sketch → R → mean of each column over the seeds."""
    exact = Outcome(exact_gram(gradients), num_validation)
    print(f"exact: {exact.spectrum!r}\n")
    print(f"| sketch | R | cost | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 3)}", flush=True)
    coordinates = coordinates_of(exact.gram)
    makers: dict[str, Callable[[int], Iterator[tuple[int, Float]]]] = {
        "Gaussian": functools.partial(gaussian_sketches, coordinates),
        **{f"p={p}": functools.partial(two_sided_sketches, gradients, p) for p in FACTOR_SIZES},
    }
    means: dict[str, dict[int, Row]] = {}
    for name, sketches in makers.items():
        rows: dict[int, list[Row]] = {size: [] for size in SKETCH_SIZES}
        for seed in range(seeds):
            for size, values in sketches(seed):
                rows[size].append(exact.compare(Outcome(values @ values.T, num_validation)))
        for size, repeated in rows.items():
            cells = [spread_of([row[column] for row in repeated]) for column in COLUMNS]
            print(f"| {name} | {size} | {costs.get(name, '')} | {' | '.join(cells)} |", flush=True)
        means[name] = {
            size: {column: float(np.mean([row[column] for row in repeated])) for column in COLUMNS}
            for size, repeated in rows.items()
        }
    chance = exact.judge_chance()
    cells = [f"{chance[column]:.3f}" if column in chance else "" for column in COLUMNS]
    print(f"| chance | | | {' | '.join(cells)} |\n", flush=True)
    return means


def spread_of(values: Sequence[float]) -> str:
    digits = 1 if max(values) > 2 else 3
    return f"{np.mean(values):.{digits}f} ±{np.ptp(values) / 2:.{digits}f}"


def measure_costs() -> dict[str, str]:
    """For each p, CPU time of a sketch over forward and backward: GPT-2 / Llama."""
    from gradients import BATCH, FAMILIES, SKETCHING, TRAINING, build, cpu_seconds, random_tokens, ratio, step

    ratios: dict[str, list[float]] = {f"p={p}": [] for p in FACTOR_SIZES}
    for family in FAMILIES:
        model, ids = build(family), random_tokens(BATCH)
        steps = {f"p={p}": step(SKETCHING, model, ids, p) for p in FACTOR_SIZES}
        seconds = cpu_seconds(steps | {TRAINING: step(TRAINING, model, ids, 0)}, repeats=9)
        for name in steps:
            ratios[name].append(ratio(seconds, name, TRAINING))
    return {name: " / ".join(f"{r:.2f}" for r in both) for name, both in ratios.items()}


def draw(path: Path, results: dict[str, dict[str, dict[int, Row]]]) -> None:
    """Error of unit inner products and worth of selections against R, a row of panels for each model."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Colours of Okabe and Ito, which colour-blind readers tell apart; markers do it again. No dates, no random ids.
    colours = ("#000000", "#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
    panels = (
        ("unit", "error of unit Gram matrix"),
        ("energy worth", "worth (energy)"),
        ("descent worth", "worth (descent)"),
    )
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "fidelity", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 2.5 * len(results)), layout="constrained")
        axes = figure.subplots(len(results), len(panels), squeeze=False)
        for row, (model, means) in zip(axes, results.items(), strict=True):
            for axis, (column, label) in zip(row, panels, strict=True):
                for (name, by_size), colour, marker in zip(means.items(), colours, "s^vDo*", strict=True):
                    line = [by_size[size][column] for size in SKETCH_SIZES]
                    style = "--" if name == "Gaussian" else "-"
                    axis.plot(SKETCH_SIZES, line, style, color=colour, marker=marker, ms=3.5, lw=1, label=name)
                axis.set_xscale("log", base=2)
                axis.set_title(f"{model}: {label}", fontsize=8)
                axis.grid(alpha=0.3)
            row[0].set_yscale("log")
        axes[-1, 1].set_xlabel("sketch size R")
        axes[0, 0].legend(fontsize=6)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--validation", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cost", action="store_true", help="measure what each p costs, too")
    parser.add_argument("--figure", type=Path, help="draw the tables; needs the extra bench")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = arguments.pool, arguments.validation
    models = {"demo": (demo_model_path(), demo_texts)}
    if STORIES.is_dir():
        models["stories260K"] = (STORIES, stories_texts)
    else:
        print("stories260K: skipped, there is no ../shared/data/model/stories260K beside the repository")
    costs = measure_costs() if arguments.cost else {}
    results = {}
    for name, (path, texts) in models.items():
        validation, pool = texts(*sizes)
        print(f"## {name}, {len(pool)} + {len(validation)} documents, {arguments.seeds} seeds")
        gradients = exact_gradients(Checkpoint(str(path)), validation + pool)
        results[name] = measure(gradients, len(validation), arguments.seeds, costs)
    if arguments.figure:
        draw(arguments.figure, results)


if __name__ == "__main__":
    main()
