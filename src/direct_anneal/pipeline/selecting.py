"""`select`, top to bottom as the method goes.

N samples of the pool, M of the validation set, R sketch size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.checkpoint import Checkpoint
from direct_anneal.corpus import Corpus, Fields, Source, check_writable, expand, prepare, write_selected
from direct_anneal.curvature import CurvatureName, cross_fit
from direct_anneal.errors import InputError
from direct_anneal.pipeline import doubts, manifest
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.pipeline.estimating import estimate_curvature
from direct_anneal.pipeline.formulation import formulate, solve_at_any_budget, solve_within
from direct_anneal.pipeline.outputs import claim, evidence, retire, write_json, write_table
from direct_anneal.pipeline.sketching import Sketching
from direct_anneal.pipeline.stages import Stages
from direct_anneal.progress import Progress, Silent
from direct_anneal.selection import Objective, Selection

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
    stages = Stages(progress or Silent())
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

    sketch = Sketching(config, checkpoint, max_length, stages, found)
    validation = sketch("validation", validation_corpus)  # first: it is small, and shows trouble early
    pool = sketch("pool", pool_corpus)

    with stages.stage("Spectrum of the validation set", _CURVATURE_UNITS[config.curvature]) as advance:
        # In an order that has nothing to do with the file's, since the halves that are held out alternate.
        order = _by_hash(validation.samples["id"])
        z = validation.dense()[order]  # (M, R)
        estimate = estimate_curvature(
            config,
            validation_corpus,
            validation,
            order,
            max_length=max_length,
            fingerprint=sketch.fingerprint(validation_corpus),
            build_sketcher=sketch.build,
            advance=advance,
        )
        crossed = None if estimate.halves is None else cross_fit(z, estimate.halves)

    with stages.stage("Choosing", "samples", len(pool)) as advance:
        formulation = formulate(config.objective, config, pool, z, estimate)
        formulation, selection, least = solve_within(formulation, config)
        other: Objective = "descent" if config.objective == "energy" else "energy"
        alternative = solve_at_any_budget(formulate(other, config, pool, z, estimate), config)
        advance(len(pool))

    with stages.stage("Writing", "documents", len(selection.indices)) as advance:
        if config.overwrite:
            retire(out, config, max_length)
        table = evidence(pool_corpus, pool, formulation.problem, selection)
        write_table(out / "selection.parquet", table)
        files = write_selected(pool_corpus, table["selected"].to_numpy(), out)
        advance(len(selection.indices))

    found += doubts.of_coverage(sketch.coverage())
    known_in_part = config.num_eigenpairs is not None
    found += doubts.of_spectrum(estimate.whole, crossed, known_in_part=known_in_part)
    found += doubts.of_corpus(pool_corpus, pool, "pool")
    found += doubts.of_corpus(validation_corpus, validation, "validation")
    found += doubts.of_overlap(pool_corpus, validation_corpus)
    found += doubts.of_selection(selection, pool, config, least)
    content = {
        "config": manifest.configuration(config, max_length),
        "versions": manifest.versions(),
        "fingerprints": {
            "model": sketch.weights,
            "optimizer": sketch.optimizer,
            "tokenizer": checkpoint.tokenizer_fingerprint(),
            "pool": pool_corpus.fingerprint,
            "validation": validation_corpus.fingerprint,
        },
        "corpora": {
            "pool": manifest.corpus_entry(pool_corpus, pool),
            "validation": manifest.corpus_entry(validation_corpus, validation),
        },
        "composition": manifest.composition(table, validation_corpus),
        "coverage": sketch.coverage(),
        "spectrum": manifest.spectrum_entry(estimate.whole, crossed, config),
        "budget": manifest.budget_entry(formulation, selection, config.budget_reference, relaxed=least is not None),
        "objective": manifest.objective_entry(config, selection),
        "alternative": manifest.alternative_entry(other, alternative, selection, pool),
        "status": selection.status,
        "num_selected": len(selection.indices),
        "warnings": found,
        "files": [path.relative_to(out).as_posix() for path in files],
        "timings": stages.seconds,
    }
    return Run(out, selection, write_json(out / "manifest.json", content))


def _sources(role: str, patterns: tuple[str, ...], out: Path, found: list[str]) -> list[Source]:
    """What the patterns stand for, without the run's own files where its directory lies among the documents."""
    expanded = expand(patterns, role)
    sources = [source for source in expanded if not source.path.resolve().is_relative_to(out.resolve())]
    if not sources:
        raise InputError(f"--{role} must lie outside --out, but all of it is below {out}: choose another --out")
    if len(sources) < len(expanded):
        found.append(f"{role}: {len(expanded) - len(sources)} files left out, they lie below --out")
    return sources


def _read(
    role: str, sources: list[Source], config: SelectConfig, checkpoint: Checkpoint, max_length: int, stages: Stages
) -> Corpus:
    with stages.stage(f"Reading the {role}", "documents") as advance:
        return prepare(
            sources,
            role=role,
            fields=Fields(
                text=config.text_field, id=config.id_field, domain=config.domain_field, prompt=config.prompt_field
            ),
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=max_length,
            directory=Path(config.out) / "corpus" / role,
            advance=advance,
        )


def _by_hash(ids: pa.ChunkedArray) -> NDArray[np.intp]:
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids.to_pylist()]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.intp)
