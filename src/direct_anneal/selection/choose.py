"""From gradients to a selection and its files: what `select` and `reselect` have in common.

N samples of the pool, M of the validation set, R sketch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import CrossFit, CurvatureName, Estimate, cross_energies, cross_fit
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.gradients import GradientSketcher
from direct_anneal.notebook import table
from direct_anneal.objectives import Built, Gradients, Inputs, SelectionObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.path import PathLosses
from direct_anneal.progress import Advance
from direct_anneal.run import checks, manifest
from direct_anneal.run.evidence import evidence
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation
from direct_anneal.selection.constraints import constraints
from direct_anneal.selection.frontier import trace
from direct_anneal.selection.spectrum import estimate_curvature
from direct_anneal.selection.stages import Stages
from direct_anneal.solver import Block, Map, Selection

_MOST_DOMAINS = 12
_CURVATURE_UNITS: dict[CurvatureName, str] = {
    "empirical-fisher": "samples",
    "mc-fisher": "tokens",
    "ggn": "products",
    "hessian": "products",
}


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

    def _repr_html_(self) -> str:
        domains = self.manifest["composition"]["domains"]
        largest = sorted(domains.items(), key=lambda item: (-item[1]["selected"], item[0]))[:_MOST_DOMAINS]
        rows = [(name, f"{entry['selected']:,}", f"{entry['pool']:,}") for name, entry in largest]
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.manifest["warnings"])
        return (
            f"{self.selection._repr_html_()}{table(('domain', 'selected', 'pool'), rows)}"
            f"{f'<ul>{notes}</ul>' if notes else ''}<code>{escape(str(self.out))}</code>"
        )

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}, {self.selection!r})"


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a selection is made from, once documents are read and gradients are there.

    Attributes:
        pool_corpus, validation_corpus: the documents.
        pool, validation: their gradients.
        fingerprint: what the validation set's features depend on.
        tokens: how documents became tokens.
        origin: the run that made the features.
        build_sketcher: for curvatures that need the model, where that run has kept none.
        path: losses of the pool's usable documents along the descent path, where an objective needs them.
    """

    pool_corpus: Corpus
    validation_corpus: Corpus
    pool: SketchedGradients
    validation: SketchedGradients
    fingerprint: Mapping[str, Any]
    tokens: Tokenisation
    origin: RunDir
    build_sketcher: Callable[[], GradientSketcher]
    path: PathLosses | None = None


@dataclass(frozen=True)
class Spectra:
    """Curvature of the validation set, and how it holds on samples held out.

    Attributes:
        order: of the validation set's samples, (M,): the halves that are held out alternate in it.
        estimate, crossed, energies: as `estimate_curvature`, `cross_fit` and `cross_energies` give them.
    """

    order: NDArray[np.intp]
    estimate: Estimate
    crossed: CrossFit | None
    energies: manifest.Energies | None


@dataclass(frozen=True)
class _Watched:
    """A block of rows that tells how many are read."""

    block: Block
    advance: Advance

    @property
    def shape(self) -> tuple[int, ...]:
        return self.block.shape

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, rows: Any) -> NDArray[np.floating]:
        read = self.block[rows]
        self.advance(len(read))
        return read


def choose(
    config: SelectConfig,
    run: RunDir,
    gathered: Gathered,
    stages: Stages,
    found: list[str],
    *,
    frontier: tuple[float, ...] | None = None,
) -> Run:
    """Solve, and write the chosen documents with the evidence beside them.

    Args:
        config: of this selection.
        run: where it is written, which is held; it may be another than the features'.
        stages: where progress is shown.
        found: remarks for the user so far; more are added.
        frontier: budget ratios to trace beside the one asked for; a grid of our own where empty.
    """
    pool_corpus, validation_corpus = gathered.pool_corpus, gathered.validation_corpus
    pool, validation = gathered.pool, gathered.validation

    spectra = _spectra(config, gathered, stages) if len(validation.units) else None
    with _mapper(config) as mapper:
        with stages.stage("Choosing", "rows read") as advance:  # how many passes it takes shows at the end
            # What is read elsewhere cannot tell of it here.
            units: list[Any] = [_Watched(block, advance) for block in pool.units]
            watched = replace(pool, units=units) if config.engine == "local" else pool
            inputs = inputs_of(config, watched, validation, spectra, mapper, gathered.path)
            objective = config.chosen_objective
            assert isinstance(objective, SelectionObjective)
            built, selection, least = solve_within(objective, objective.build(inputs), relax=config.relax_budget)
            beside = [
                manifest.beside_entry(other, _at_any_budget(other, inputs), selection, pool.samples)
                for other in config.other_objectives.values()
                if isinstance(other, SelectionObjective)
            ]

        traced = None
        if frontier is not None:
            with stages.stage("Frontier", "budgets") as advance:
                traced = trace(objective, built, frontier, pool.samples, advance)

    with stages.stage("Writing", "documents", len(selection.indices)) as advance:
        if config.overwrite:
            run.retire(config, gathered.tokens)
        rows = evidence(pool_corpus, pool, built, selection)
        files = run.write_results(rows, pool_corpus, traced)
        advance(len(selection.indices))

    coverage = gathered.origin.coverage()
    found += checks.of_coverage(coverage)
    if spectra is not None:
        found += checks.of_spectrum(
            spectra.estimate.whole, spectra.crossed, known_in_part=config.eigenpairs is not None
        )
    found += checks.of_corpus(pool_corpus, pool, "pool")
    found += checks.of_corpus(validation_corpus, validation, "validation")
    found += checks.of_overlap(pool_corpus, validation_corpus)
    found += built.remarks
    found += checks.of_selection(selection, pool, config, least)
    content: dict[str, Any] = {
        "config": manifest.configuration(config, gathered.tokens.max_length),
        "versions": manifest.versions(),
        "fingerprints": {
            "model": gathered.fingerprint["model"],
            "optimizer": gathered.fingerprint["optimizer"],
            "tokenizer": gathered.tokens.tokenizer,
            "pool": pool_corpus.fingerprint,
            "validation": validation_corpus.fingerprint,
        },
        "corpora": {
            "pool": manifest.corpus_entry(pool_corpus, pool),
            "validation": manifest.corpus_entry(validation_corpus, validation),
        },
        "composition": manifest.composition(rows, validation_corpus),
        "coverage": coverage,
        "spectrum": {}
        if spectra is None
        else manifest.spectrum_entry(spectra.estimate.whole, spectra.crossed, spectra.energies, config),
        "budget": manifest.budget_entry(
            built, selection, getattr(objective, "budget_reference", "pool"), relaxed=least is not None
        ),
        "objective": manifest.objective_entry(objective, built, selection),
        "beside": beside,
        "status": selection.status,
        "num_selected": len(selection.indices),
        "warnings": found,
        "files": files,
        "timings": stages.seconds,
    }
    if gathered.origin.path.resolve() != run.path.resolve():
        content["features_of"] = str(gathered.origin.path)
    if traced is not None:
        content["frontier"] = traced
    return Run(run.path, selection, run.write_manifest(content))


def _spectra(config: SelectConfig, gathered: Gathered, stages: Stages) -> Spectra:
    """The curvature of the validation set, and how it holds."""
    validation = gathered.validation
    with stages.stage("Spectrum of the validation set", _CURVATURE_UNITS[config.curvature]) as advance:
        # In an order that has nothing to do with the file's, since the halves that are held out alternate.
        order = _by_hash(validation.samples["id"])
        z = validation.dense()[order]  # (M, R)
        estimate = estimate_curvature(
            config,
            gathered.validation_corpus,
            validation,
            order,
            max_length=gathered.tokens.max_length,
            fingerprint=gathered.fingerprint,
            directory=gathered.origin.path / "curvature",
            build_sketcher=gathered.build_sketcher,
            advance=advance,
        )
        crossed = None if estimate.halves is None else cross_fit(z, estimate.halves)
        energies = None if estimate.halves is None else cross_energies(z, estimate.halves)
    return Spectra(order, estimate, crossed, energies)


def inputs_of(
    config: SelectConfig,
    pool: SketchedGradients,
    validation: SketchedGradients,
    spectra: Spectra | None,
    mapper: Map = map,
    path: PathLosses | None = None,
) -> Inputs:
    """What objectives may look at.

    Args:
        spectra: of the validation set, where there are gradients.
        path: losses of the pool's documents along the descent path, where an objective needs them.

    Raises:
        InputError: the pool is smaller than what is asked of it, or a domain or an id is not in it.
    """
    num_tokens = pool.samples["num_tokens"].to_numpy()
    num_selected, token_budget = config.size_of(num_tokens)
    order = np.arange(len(validation)) if spectra is None else spectra.order

    def gradients(role: str) -> Gradients:
        if role == "pool":
            return Gradients(pool.units, pool.norms)
        return Gradients([np.concatenate(validation.units)[order]], validation.norms[order])

    def ngrams(role: str) -> Sequence[Block]:
        blocks = pool.ngrams if role == "pool" else validation.ngrams
        assert blocks is not None, "n-grams are weighed, but there are none"
        return blocks if role == "pool" else [np.concatenate(blocks)[order]]

    def samples(role: str) -> pa.Table:
        return pool.samples if role == "pool" else validation.samples.take(pa.array(order))

    def along(role: str) -> PathLosses:
        assert role == "pool", "losses along a path are of the pool"
        assert path is not None, "an objective that asks for the path must say so in `needs`"
        return path

    return Inputs(
        num_tokens=num_tokens,
        num_selected=num_selected,
        token_budget=token_budget,
        constraints={
            **constraints(config, pool.samples, num_selected, token_budget),
            "tie_order": pc.rank(pool.samples["id"], tiebreaker="first").to_numpy(),
        },
        loaders={"gradients": gradients, "ngrams": ngrams, "samples": samples, "path": along},
        estimate=None if spectra is None else lambda: spectra.estimate,
        summed=config.reduction == "sum",
        mapper=mapper,
    )


def _at_any_budget(objective: SelectionObjective, inputs: Inputs) -> tuple[Built, Selection, float | None] | None:
    """A selection for comparison only: an infeasible budget is relaxed, whatever was asked for.

    Returns:
        None where there is no selection even so, which is no reason to withhold the one that was asked for.
    """
    try:
        return solve_within(objective, objective.build(inputs), relax=True)
    except InputError:
        return None


def _mapper(config: SelectConfig) -> AbstractContextManager[Map]:
    """What carries out the products over all rows: this process, or tasks of a cluster."""
    if config.engine == "local":
        return nullcontext(map)
    from direct_anneal.distributed import TaskMap

    return TaskMap(address=config.ray_address, workers=config.workers)


def _by_hash(ids: pa.ChunkedArray) -> NDArray[np.intp]:
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids.to_pylist()]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.intp)
