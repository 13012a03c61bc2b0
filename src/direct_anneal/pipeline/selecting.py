"""`select`, top to bottom as the method goes.

N samples of the pool, M of the validation set, R sketch size.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.checkpoint import Checkpoint
from direct_anneal.corpus import Corpus, Fields, Source, check_writable, expand, prepare, reopen, write_selected
from direct_anneal.curvature import CrossFit, Spectrum, cross_fit
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore, SketchedGradients, extract
from direct_anneal.gradients import FACTOR_SIZE, SKETCH_VERSION, GradientSketcher, SlowPathWarning
from direct_anneal.pipeline import doubts, manifest
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.pipeline.formulation import formulate, solve_at_any_budget, solve_within
from direct_anneal.pipeline.frontier import trace
from direct_anneal.pipeline.outputs import claim, evidence, recorded, retire, write_json, write_table
from direct_anneal.progress import Advance, Progress, Silent
from direct_anneal.selection import Objective, Selection


@dataclass(frozen=True)
class Run:
    """What `select` leaves.

    Attributes:
        out: the directory.
        selection: the solution, its indices relative to the pool's usable samples.
        manifest: as written to manifest.json.
    """

    out: Path
    selection: Selection
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}, {self.selection!r})"


def select(*, progress: Progress | None = None, **options: Any) -> Run:
    """Choose the documents to anneal on, and write them with the evidence beside them.

    Everything is written below `out`. A run that was interrupted goes on where it stopped; one that is complete is
    solved again from its features, in seconds.

    Args:
        progress: shows the stages; silent where left out.
        options: the fields of `SelectConfig`.

    Raises:
        InputError: something given cannot be used, or the budget cannot be met; says what to do.

    Source: arXiv:2605.31175, Algorithms 1 and 2, with the departures numbered in docs/departures.md.
    """
    config = SelectConfig(**options)
    stages = _Stages(progress or Silent())
    out = Path(config.out)

    checkpoint = Checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    max_length = config.window(checkpoint.context_length)
    found: list[str] = []
    pool_sources = _sources("pool", config.pool, out, found)
    validation_sources = _sources("validation", config.validation, out, found)
    check_writable(pool_sources)
    claim(out, config, max_length)

    pool_corpus = _read("pool", pool_sources, config, checkpoint, max_length, stages)
    validation_corpus = _read("validation", validation_sources, config, checkpoint, max_length, stages)
    config.size_of(pool_corpus.num_tokens)  # to fail before the long part

    sketch = _Sketching(config, checkpoint, max_length, stages, found)
    validation = sketch("validation", validation_corpus)  # first: it is small, and shows trouble early
    pool = sketch("pool", pool_corpus)

    gathered = Gathered(
        pool_corpus, validation_corpus, pool, validation, sketch.weights, checkpoint.tokenizer_fingerprint(), max_length
    )
    return _choose(config, gathered, stages, found)


@dataclass(frozen=True)
class Gathered:
    """What a selection is made from, once documents are read and gradients are there."""

    pool_corpus: Corpus
    validation_corpus: Corpus
    pool: SketchedGradients
    validation: SketchedGradients
    weights: str  # fingerprint of the model's
    tokenizer: str  # fingerprint
    max_length: int


def _choose(
    config: SelectConfig,
    gathered: Gathered,
    stages: _Stages,
    found: list[str],
    *,
    frontier: tuple[float, ...] | None = None,
    origin: Path | None = None,
) -> Run:
    """From gradients to the run's files.

    Args:
        frontier: budget ratios to trace beside the one asked for; a grid of our own where empty.
        origin: the run whose features these are, where it is another.
    """
    out, max_length = Path(config.out), gathered.max_length
    pool_corpus, validation_corpus = gathered.pool_corpus, gathered.validation_corpus
    pool, validation = gathered.pool, gathered.validation

    with stages.stage("Spectrum of the validation set", "samples", len(validation)) as advance:
        # In an order that has nothing to do with the file's, since the halves that are held out alternate.
        z = validation.dense()[_by_hash(validation.samples["id"])]  # (M, R)
        spectrum, crossed = _spectrum(z, config.elbow)
        advance(len(z))

    with stages.stage("Choosing", "samples", len(pool)) as advance:
        formulation = formulate(config.objective, config, pool, z, spectrum, crossed)
        formulation, selection, least = solve_within(formulation, config)
        other: Objective = "descent" if config.objective == "energy" else "energy"
        alternative = solve_at_any_budget(formulate(other, config, pool, z, spectrum, crossed), config)
        advance(len(pool))

    traced = None
    if frontier is not None:
        with stages.stage("Frontier", "budgets") as advance:
            traced = trace(formulation, frontier, pool.samples, advance)

    with stages.stage("Writing", "documents", len(selection.indices)) as advance:
        if config.overwrite:
            retire(out, config, max_length)
        table = evidence(pool_corpus, pool, formulation.problem, selection)
        write_table(out / "selection.parquet", table)
        if traced is not None:
            write_table(out / "frontier.parquet", pa.Table.from_pylist(traced))
        files = write_selected(pool_corpus, table["selected"].to_numpy(), out)
        advance(len(selection.indices))

    found += doubts.of_spectrum(spectrum, crossed)
    found += doubts.of_corpus(pool_corpus, pool, "pool")
    found += doubts.of_corpus(validation_corpus, validation, "validation")
    found += doubts.of_overlap(pool_corpus, validation_corpus)
    found += doubts.of_selection(selection, pool, config, least)
    content = {
        "config": manifest.configuration(config, max_length),
        "versions": manifest.versions(),
        "fingerprints": {
            "model": gathered.weights,
            "tokenizer": gathered.tokenizer,
            "pool": pool_corpus.fingerprint,
            "validation": validation_corpus.fingerprint,
        },
        "corpora": {
            "pool": manifest.corpus_entry(pool_corpus, pool),
            "validation": manifest.corpus_entry(validation_corpus, validation),
        },
        "composition": manifest.composition(table, validation_corpus),
        "spectrum": manifest.spectrum_entry(spectrum, crossed, config.elbow),
        "budget": manifest.budget_entry(formulation, selection, config.budget_reference, relaxed=least is not None),
        "objective": manifest.objective_entry(config.objective, selection),
        "alternative": manifest.alternative_entry(other, alternative, selection, pool),
        "status": selection.status,
        "num_selected": len(selection.indices),
        "warnings": found,
        "files": [path.relative_to(out).as_posix() for path in files],
        "timings": stages.seconds,
    }
    if origin is not None:
        content["features_of"] = str(origin)
    if traced is not None:
        content["frontier"] = traced
    return Run(out, selection, write_json(out / "manifest.json", content))


def reselect(
    run: str | Path, *, progress: Progress | None = None, frontier: tuple[float, ...] | None = None, **options: Any
) -> Run:
    """Choose again from the features of a run, in seconds: the model is not loaded, and that run is left as it is.

    Args:
        run: the directory of a `select` run whose features are complete, finished otherwise or not.
        progress: shows the stages; silent where left out.
        frontier: also solve under these budget ratios, or where empty under a grid of them, and write
            frontier.parquet: objective, bound, budget used and composition by domain for each.
        options: `out`, and those fields of `SelectConfig` in which this selection differs from that run: size,
            objective, budget, elbow, floors and ceilings, forced documents.

    Raises:
        InputError: the run's features are not complete, its documents have changed since, or as for `select`.
    """
    config = recorded(Path(run), options)
    stages = _Stages(progress or Silent())
    origin, out = Path(run), Path(config.out)
    checkpoint = Checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    max_length = config.window(checkpoint.context_length)
    found: list[str] = []
    sources = {role: _sources(role, getattr(config, role), origin, found) for role in ("pool", "validation")}
    check_writable(sources["pool"])
    corpora, gradients, weights = {}, {}, ""
    with stages.stage("Opening the features", "corpora", 2) as advance:
        for role in ("validation", "pool"):
            store = FeatureStore.open(origin / "features" / role)
            corpora[role] = reopen(
                sources[role],
                role=role,
                fields=_fields(config),
                tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
                vocab_size=checkpoint.vocab_size,
                max_length=max_length,
                directory=origin / "corpus" / role,
                fingerprint=store.fingerprint["data"],
            )
            gradients[role] = SketchedGradients.load(store, corpora[role].index)
            found += [remark for remark in store.remarks() if remark not in found]
            weights = store.fingerprint["model"]
            advance(1)
    claim(out, config, max_length)
    gathered = Gathered(
        corpora["pool"],
        corpora["validation"],
        gradients["pool"],
        gradients["validation"],
        weights,
        checkpoint.tokenizer_fingerprint(),
        max_length,
    )
    return _choose(config, gathered, stages, found, frontier=frontier, origin=origin)


class _Stages:
    """Progress, and the seconds that each stage took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None) -> Iterator[Advance]:
        started = time.monotonic()
        with self._progress.stage(name, unit, total) as advance:
            yield advance
        self.seconds[name] = round(time.monotonic() - started, 3)


def _sources(role: str, patterns: tuple[str, ...], out: Path, found: list[str]) -> list[Source]:
    """What the patterns stand for, without the run's own files where its directory lies among the documents."""
    expanded = expand(patterns, role)
    sources = [source for source in expanded if not source.path.resolve().is_relative_to(out.resolve())]
    if not sources:
        raise InputError(f"--{role} must lie outside --out, but all of it is below {out}: choose another --out")
    if len(sources) < len(expanded):
        found.append(f"{role}: {len(expanded) - len(sources)} files left out, they lie below --out")
    return sources


def _fields(config: SelectConfig) -> Fields:
    return Fields(text=config.text_field, id=config.id_field, domain=config.domain_field)


def _read(
    role: str, sources: list[Source], config: SelectConfig, checkpoint: Checkpoint, max_length: int, stages: _Stages
) -> Corpus:
    with stages.stage(f"Reading the {role}", "documents") as advance:
        return prepare(
            sources,
            role=role,
            fields=_fields(config),
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=max_length,
            directory=Path(config.out) / "corpus" / role,
            advance=advance,
        )


class _Sketching:
    """Corpora into gradients; one sketcher serves all of them, and is built only where something is missing."""

    def __init__(
        self, config: SelectConfig, checkpoint: Checkpoint, max_length: int, stages: _Stages, found: list[str]
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._max_length = max_length
        self._stages = stages
        self._found = found
        self._sketcher: GradientSketcher | None = None
        self.weights = checkpoint.weights_fingerprint()

    def __call__(self, role: str, corpus: Corpus) -> SketchedGradients:
        config = self._config
        store = self._store(role, corpus)
        with (
            self._stages.stage(f"Gradients of the {role}", "tokens", int(corpus.num_tokens.sum())) as advance,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", SlowPathWarning)
            extract(
                corpus,
                store,
                self._build,
                max_length=self._max_length,
                batch_tokens=config.batch_tokens,
                advance=advance,
            )
        if slow := [str(one.message) for one in caught if issubclass(one.category, SlowPathWarning)]:
            store.remember(slow)
        self._found += [remark for remark in store.remarks() if remark not in self._found]
        gradients = SketchedGradients.load(store, corpus.index)
        if not len(gradients):
            raise InputError(
                f"gradients of the {role} must be finite, but all {corpus.num_samples} are NaN or infinite: the "
                "checkpoint is damaged, or overflows in its precision (try --dtype float32)"
            )
        return gradients

    def _store(self, role: str, corpus: Corpus) -> FeatureStore:
        config = self._config
        return FeatureStore(
            Path(config.out) / "features" / role,
            num_samples=corpus.num_samples,
            sketch_size=config.sketch_size,
            fingerprint={
                "model": self.weights,
                "data": corpus.fingerprint,
                "max_length": self._max_length,
                "projection": config.projection,
                "factor_size": FACTOR_SIZE,
                "sketch_version": SKETCH_VERSION,
                "seed": config.seed,
                "dtype": config.dtype,
            },
            replace=config.overwrite,
        )

    def _build(self) -> GradientSketcher:
        if self._sketcher is None:
            config = self._config
            model = self._checkpoint.load_model(config.device, config.dtype)
            self._sketcher = GradientSketcher(model, config.sketch_size, config.projection, config.seed)
        return self._sketcher


def _by_hash(ids: pa.ChunkedArray) -> NDArray[np.intp]:
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids.to_pylist()]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.intp)


def _spectrum(values: NDArray[np.float64], energy: float) -> tuple[Spectrum, CrossFit | None]:
    """The spectrum, and costs held out where there are enough samples to hold some out."""
    try:
        return Spectrum.from_sketches(values, energy), cross_fit(values, energy) if len(values) >= 4 else None
    except ValueError as error:
        raise InputError(f"the validation set must have a spectrum, but {error}") from error
