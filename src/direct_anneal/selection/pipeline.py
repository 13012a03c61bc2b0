"""`select`, top to bottom: read, features, curvature, build, solve, write. `select_again` begins after the features.

N samples of the pool, M of the validation set, R sketch size.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.names import corpus_name
from direct_anneal.config.objective import Likeness
from direct_anneal.config.select import SelectConfig, SolveConfig
from direct_anneal.config.signature import renamed, takes, takes_changes
from direct_anneal.data import Corpus, check_fields, check_writable, prepare, readers_of
from direct_anneal.distributed import check_installed
from direct_anneal.errors import InputError, option
from direct_anneal.features import SketchedGradients
from direct_anneal.gradients import GradientSketcher
from direct_anneal.io.threads import ThreadMap, one_blas_thread
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.objectives import Built, Inputs, SelectionObjective
from direct_anneal.path import PathLosses
from direct_anneal.progress import Work, current_progress
from direct_anneal.run import checks, manifest
from direct_anneal.run.evidence import evidence
from direct_anneal.run.layout import RETAIN, ROLES, roles_of
from direct_anneal.run.likeness import told_apart
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.safety import num_shared, safety_checks, safety_facts, uses_stiff_split
from direct_anneal.run.sources import Tokenisation, fields_of, sources_of
from direct_anneal.selection.chooser import models_of, require_text
from direct_anneal.selection.constraints import constraints
from direct_anneal.selection.frontier import trace
from direct_anneal.selection.in_memory import accepting_samples
from direct_anneal.selection.known import Known
from direct_anneal.selection.losses import (
    as_walked,
    home_of,
    is_path_alone,
    losses_along,
    require_columns,
    require_of_these,
    usable,
    walk_of,
)
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.replay import replay_beside
from direct_anneal.selection.result import Run
from direct_anneal.selection.retention import Retention, retention_of, solved
from direct_anneal.selection.sketching import Sketching
from direct_anneal.selection.spectrum import curvature_of
from direct_anneal.selection.stages import Stages
from direct_anneal.selection.tokenising import readers
from direct_anneal.solver import Map, Selection

_PER_DOCUMENT = Work(role="pool", unit="documents")


@accepting_samples
@takes(SelectConfig)
def select(config: SelectConfig) -> Run:
    """Choose the documents to anneal on, and write them with the evidence beside them.

    Everything is written below `out`. A run that was interrupted goes on where it stopped; one that is complete is
    solved again from its features, in seconds.

    Raises:
        InputError: something given cannot be used, or the budget cannot be met; says what to do.

    Source: arXiv:2605.31175, Algorithms 1 and 2, with the departures numbered in docs/departures.md.
    """
    check_machine(config)
    stages, found = Stages(current_progress()), list[str]()
    with reading(config, stages, found) as documents:
        known = computed(config, documents, stages, found)
        return choose(config, documents.run, known, stages, found)


@takes_changes(SolveConfig)
def select_again(changes: Mapping[str, Any]) -> Run:
    """Choose again from the features of a run, in seconds: the model is not loaded, and that run is left as it is.

    The run is of `select`, its features complete, finished otherwise or not; or of `features`. What is not given is as
    it was for that run.

    Raises:
        InputError: the run's features are not complete, its documents have changed since, or as for `select`.
    """
    origin = RunDir.open(changes["run"])
    config = origin.configured({name: value for name, value in changes.items() if name != "run"})
    if config.engine == "ray":
        check_installed()
    stages, found = Stages(current_progress()), list[str]()
    known = opened(config, origin, stages, found)
    config = as_walked(config, known.path)
    with RunDir.create(config.out, config, origin.tokens) as out:
        out.mark(config, origin.tokens)
        return choose(config, out, known, stages, found)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """A run's documents, read; its directory is held.

    Attributes:
        corpora: of "pool" and "validation", and of "retain" where text is retained.
        run: where everything is written.
        checkpoint: whose features are wanted.
        tokens: how documents became tokens.
        likeness: gives that of the pool and the validation set, as `run.likeness` measures it.
    """

    corpora: dict[str, Corpus]
    run: RunDir
    checkpoint: Checkpoint
    tokens: Tokenisation
    likeness: Likeness


@contextmanager
def reading(
    config: FeaturesConfig,
    stages: Stages,
    found: list[str],
    *,
    home: Path | None = None,
    cache: Path | None = None,
    read: Callable[..., Corpus] = prepare,
) -> Iterator[Documents]:
    """Read the documents; the run's directory is held until the end.

    Args:
        found: remarks for the user are added.
        home: the directory that documents cannot lie in, where it is not the run's own.
        cache: where files behind URLs are fetched to, where that is not below `home`.
        read: makes the corpus of a role, as `prepare` does.

    Raises:
        InputError: something given cannot be used.
    """
    out = Path(config.out)
    checkpoint = Checkpoint.choosing(config)
    tokens = Tokenisation.of_run(config, checkpoint)
    found += checkpoint.special_tokens.notes
    sources = {role: sources_of(role, config, tokens, home or out, found, cache) for role in roles_of(config)}
    check_writable(sources["pool"])
    with RunDir.create(out, config, tokens) as run:
        corpora = {}
        for role in sources:
            with (
                readers(config, checkpoint, tokens, sources[role]) as (load_tokenizer, elsewhere),
                stages.stage(
                    f"Reading the {corpus_name(role)}", "documents", work=Work(role=role, unit="documents")
                ) as advance,
            ):
                corpora[role] = read(
                    sources[role],
                    role=role,
                    fields=fields_of(config),
                    load_tokenizer=load_tokenizer,
                    tokenizer_fingerprint=tokens.tokenizer,
                    vocab_size=tokens.vocab_size,
                    max_length=tokens.max_length,
                    directory=out / "corpus" / role,
                    advance=advance,
                    workers=readers_of(sources[role], trust_remote_code=config.trust_remote_code),
                    elsewhere=elsewhere,
                )
        check_writable(sources["pool"])  # those that were fetched, too
        found += check_fields(fields_of(config), corpora)
        if tokens.is_foreign:
            require_text(config, corpora)
        if isinstance(config, SelectConfig):  # both to fail before the long part
            constraints(config, corpora["pool"].index, *config.size_of(corpora["pool"].num_tokens))
        likeness = functools.cache(functools.partial(told_apart, corpora["pool"], corpora["validation"]))
        yield Documents(corpora=corpora, run=run, checkpoint=checkpoint, tokens=tokens, likeness=likeness)


def computed(config: FeaturesConfig, documents: Documents, stages: Stages, found: list[str]) -> Known:
    """Compute those columns that the objectives need and that are missing; nothing else.

    Args:
        found: remarks for the user are added.

    Raises:
        InputError: not one document can be used, or the model does not allow it.
    """
    run, corpora, checkpoint, tokens = documents.run, documents.corpora, documents.checkpoint, documents.tokens
    gradients: dict[str, SketchedGradients] = {}
    with Sketching(config, checkpoint, run, tokens.max_length, stages, found) as sketch:
        if not is_path_alone(config):
            stages.note(_extent(config, corpora))
            gradients["validation"] = sketch("validation", corpora["validation"])  # small, and shows trouble early
            if RETAIN in corpora:
                gradients[RETAIN] = sketch(RETAIN, corpora[RETAIN])
        run.mark(config, tokens)
        if gradients:
            gradients["pool"] = sketch("pool", corpora["pool"])
            sketch.complete_coverage()
    losses = None
    if (walk := walk_of(config, documents.likeness if isinstance(config, SelectConfig) else None)) is not None:
        losses = losses_along(
            config,
            walk,
            checkpoint,
            corpora["validation"],
            corpora["pool"],
            tokens,
            run,
            stages,
            gradients.get("pool"),
        )
    pool, validation, path = usable(corpora["pool"], corpora["validation"], gradients, losses)
    return Known(
        corpora=corpora,
        pool=pool,
        validation=validation,
        retain=gradients.get(RETAIN),
        path=path,
        fingerprint=sketch.fingerprint(corpora["validation"]),
        tokens=tokens,
        origin=run,
        build_sketcher=sketch.build,
        likeness=documents.likeness,
    )


def opened(config: SelectConfig, run: RunDir, stages: Stages, found: list[str]) -> Known:
    """Open what an earlier run computed.

    Raises:
        InputError: it has not what the objectives need, or files were changed since.
    """
    likeness = functools.cache(lambda: told_apart(*map(run.corpus, ROLES)))
    require_columns(config, run, likeness)
    walk = walk_of(config, likeness)
    sketched = () if is_path_alone(config) else ("validation", *roles_of(config)[2:], "pool")
    losses: PathLosses | None = None
    gradients: dict[str, SketchedGradients] = {}
    with stages.stage("Opening the features", "stores", 2 * len(sketched) + (walk is not None)) as advance:
        if walk is not None:
            losses = PathLosses.load(home_of(run.origin, run.config))
            advance(1)
        for role in sketched:
            store = run.store(role)
            advance(1)
            gradients[role] = run.features(role, ngrams=role != RETAIN)
            found += [remark for remark in store.remarks() if remark not in found]
            advance(1)
    of_losses = {} if losses is None else losses.described["fingerprints"]
    fingerprint = run.store("validation").fingerprint if sketched else of_losses
    # Those that have features are open, and were compared with them.
    corpora = {role: run.corpus(role, of_losses.get(role)) for role in roles_of(config)}
    if losses is not None and walk is not None:
        require_of_these(losses, walk, corpora, fingerprint)
    pool, validation, path = usable(corpora["pool"], corpora["validation"], gradients, losses)
    check_writable(corpora["pool"].sources)

    def no_model() -> GradientSketcher:
        raise InputError(
            f"solve loads no model, and {run.path} has kept no such curvature: run select there with "
            f"{option('curvature')} {config.curvature} first"
        )

    return Known(
        corpora=corpora,
        pool=pool,
        validation=validation,
        retain=gradients.get(RETAIN),
        path=path,
        fingerprint=fingerprint,
        tokens=run.tokens,
        origin=run.origin,
        build_sketcher=no_model,
        likeness=likeness,
    )


@one_blas_thread()
def choose(config: SelectConfig, run: RunDir, known: Known, stages: Stages, found: list[str]) -> Run:
    """Solve, and write the chosen documents with the evidence beside them.

    Args:
        config: of this selection.
        run: where it is written, which is held; it may be another than the features'.
        found: remarks for the user so far; more are added.
    """
    objective = config.chosen_objective
    assert isinstance(objective, SelectionObjective)
    curvature = curvature_of(config, known, stages)
    estimate = None if curvature is None else curvature.estimate
    with _mapper(config) as mapper:
        # How many passes it takes shows at the end.
        with stages.stage("Choosing", "rows read", work=_PER_DOCUMENT) as advance:
            inputs = known.inputs(config, estimate, mapper, advance)
            retention = retention_of(objective, inputs, known, config.retain_floor)
            built, selection, least = solved(objective, inputs, retention, relax=config.relax_budget)
            measured = checks.of_measure(selection, built.problem)
            others = [
                (
                    other,
                    (built, selection, least)
                    if other == objective
                    else _at_any_budget(other, inputs, retention_of(other, inputs, known, config.retain_floor)),
                )
                for other in config.other_objectives.values()
                if isinstance(other, SelectionObjective)
            ]
        frontier = None
        if config.frontier is not None:
            with stages.stage("Frontier", "budgets", work=_PER_DOCUMENT) as advance:
                frontier = trace(objective, built, config.frontier, inputs.samples("pool"), advance)

    pool_corpus, validation_corpus = (known.corpora[role] for role in ROLES)
    replay = replay_beside(config, known.pool.samples, selection, built.problem)
    with stages.stage("Writing", "documents", len(selection.indices), work=_PER_DOCUMENT) as advance:
        if config.overwrite:
            run.retire(config, known.tokens)
        rows = evidence(pool_corpus, known.pool, built, selection, None if replay is None else replay.chosen)
        files = run.write_results(rows, pool_corpus, frontier)
        general = [] if replay is None else run.write_replay(rows, pool_corpus)
        advance(len(selection.indices))

    found += [*checks.of_chooser(config, known.tokens), *checks.of_coverage(known.origin.coverage())]
    if curvature is not None:
        found += checks.of_validation(curvature.estimate.whole.num_validation)
    found += [*known.left_out(), *built.remarks, *checks.of_selection(selection, known.pool, config, least)]
    found += checks.of_size(selection, known.pool.samples)
    content = {
        "config": manifest.configuration(config, known.tokens.max_length),
        "versions": manifest.versions(),
        "fingerprints": {
            **models_of(known.tokens, known.fingerprint["model"]),
            "optimizer": known.fingerprint["optimizer"],
            "tokenizer": known.tokens.tokenizer,
            "pool": pool_corpus.fingerprint,
            "validation": validation_corpus.fingerprint,
            **({} if retention is None else {RETAIN: known.corpora[RETAIN].fingerprint}),
        },
        "corpora": known.corpora_entry(),
        "composition": manifest.composition(rows, validation_corpus),
        "safety": safety_facts(
            pool_corpus,
            rows["selected"].to_numpy(),
            in_validation=num_shared(pool_corpus, validation_corpus),
            told_apart=known.likeness(),
            by_its_own_measure=measured,
        ),
        "coverage": known.origin.coverage(),
        "spectrum": {}
        if curvature is None
        else manifest.spectrum_entry(curvature.estimate.whole, curvature.crossed, curvature.energies, config),
        "budget": manifest.budget_entry(objective, built, selection, relaxed=least is not None),
        "objective": manifest.objective_entry(objective, built, selection),
        "beside": [manifest.beside_entry(other, solved, selection, known.pool.samples) for other, solved in others],
        "status": selection.status,
        "num_selected": len(selection.indices),
        "warnings": found,
        "files": [*files, *general],
        "timings": stages.seconds,
    }
    if curvature is not None and uses_stiff_split(content):
        found += checks.of_spectrum(curvature.estimate.whole, known_in_part=config.eigenpairs is not None)
    found += [check.text for check in safety_checks(content) if check.state in ("look", "bad")]
    if known.origin.path.resolve() != run.path.resolve():
        content["features_of"] = str(known.origin.path)
    if frontier is not None:
        content["frontier"] = frontier
    if retention is not None:
        content[RETAIN] = retention.entry(selection)
    if replay is not None:
        content["replay"] = replay.entry(known.pool.samples, selection.indices, general)
    return Run(run.path, selection, run.write_manifest(content))


def _at_any_budget(
    objective: SelectionObjective, inputs: Inputs, retention: Retention | None
) -> tuple[Built, Selection, float | None] | None:
    """Return a selection for comparison only: an infeasible budget is relaxed, whatever was asked for.

    Returns:
        None where there is no selection even so, which is no reason to withhold the one that was asked for.
    """
    try:
        return solved(objective, inputs, retention, relax=True)
    except InputError:
        return None


def _mapper(config: SelectConfig) -> AbstractContextManager[Map]:
    """Return the engine of the products over all rows: threads of this process, or tasks of a cluster."""
    if config.engine == "local":
        return ThreadMap()
    from direct_anneal.distributed import TaskMap

    return TaskMap(address=config.ray_address, workers=config.workers)


def _extent(config: FeaturesConfig, corpora: Mapping[str, Corpus]) -> str:
    """Return the extent of the long part, known beforehand."""
    pool, validation = (corpora[role] for role in ROLES)
    num_tokens = int(pool.num_tokens.sum() + validation.num_tokens.sum())
    num_bytes = 2 * config.sketch_size * (pool.num_samples + validation.num_samples)
    return (
        f"Gradients of {pool.num_samples:,} + {validation.num_samples:,} documents, {num_tokens:,} tokens. Features "
        f"take {num_bytes / 1e6:,.1f} MB of disk, and {shutil.disk_usage(config.out).free / 1e6:,.0f} MB are free"
    )


select_documents = select
reselect = renamed(select_again, "reselect")
