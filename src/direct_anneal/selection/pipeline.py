"""`select`, top to bottom as the method goes; `compute_features` ends before choosing, `select_again` begins there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.select import SelectConfig, SolveConfig
from direct_anneal.config.signature import renamed, takes, takes_changes
from direct_anneal.data import check_writable
from direct_anneal.distributed import check_installed
from direct_anneal.errors import InputError, option
from direct_anneal.features import SketchedGradients
from direct_anneal.gradients import GradientSketcher
from direct_anneal.path import PathLosses
from direct_anneal.progress import current_progress
from direct_anneal.run import checks, manifest
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection.choose import Gathered, Run, choose
from direct_anneal.selection.in_memory import accepting_samples
from direct_anneal.selection.inputs import gathered
from direct_anneal.selection.losses import home_of, is_path_alone, path_objective, usable
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.stages import Stages


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
    with gathered(config, stages, found) as of_run:
        return choose(config, of_run.origin, of_run, stages, found, frontier=config.frontier)


@dataclass(frozen=True)
class Features:
    """What `features` leaves.

    Attributes:
        out: the directory, for `select_again` or for `select` to go on in.
        corpora: of "pool" and "validation" what the manifest of a selection says of them.
        warnings: remarks for the user.
    """

    out: Path
    corpora: dict[str, dict[str, Any]]
    warnings: list[str]


@takes(FeaturesConfig)
def compute_features(config: FeaturesConfig) -> Features:
    """Compute and store the gradients of pool and validation set, as `select` does before it chooses.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    check_machine(config)
    stages, found, out = Stages(current_progress()), list[str](), Path(config.out)
    with gathered(config, stages, found) as of_run:
        if config.overwrite and of_run.origin.difference(config, of_run.tokens):
            of_run.origin.retire(config, of_run.tokens)
        parts = {"pool": (of_run.pool_corpus, of_run.pool), "validation": (of_run.validation_corpus, of_run.validation)}
        found += checks.of_coverage(of_run.origin.coverage())
        for role, (corpus, gradients) in parts.items():
            found += checks.of_corpus(corpus, gradients, role)
        found += checks.of_overlap(of_run.pool_corpus, of_run.validation_corpus)
        return Features(out, {role: manifest.corpus_entry(*part) for role, part in parts.items()}, found)


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
    gradients: dict[str, SketchedGradients] = {}
    fingerprint: Mapping[str, Any] = {}
    with stages.stage("Opening the features", "stores", 4) as advance:
        losses = None if path_objective(config) is None else PathLosses.load(home_of(origin.origin, origin.config))
        if losses is not None:
            fingerprint = losses.described["fingerprints"]
        if not is_path_alone(config):
            for role in ("validation", "pool"):
                store = origin.store(role)
                advance(1)
                fingerprint = store.fingerprint if role == "validation" else fingerprint
                gradients[role] = origin.features(role)
                found += [remark for remark in store.remarks() if remark not in found]
                advance(1)
    corpora = {role: origin.corpus(role, fingerprint.get(role)) for role in ("pool", "validation")}
    pool, validation, path = usable(corpora["pool"], corpora["validation"], gradients, losses)
    check_writable(origin.corpus("pool").sources)

    def no_model() -> GradientSketcher:
        raise InputError(
            f"solve loads no model, and {origin.path} has kept no such curvature: run select there with "
            f"{option('curvature')} {config.curvature} first"
        )

    of_run = Gathered(
        pool_corpus=origin.corpus("pool"),
        validation_corpus=origin.corpus("validation"),
        pool=pool,
        validation=validation,
        path=path,
        fingerprint=fingerprint,
        tokens=origin.tokens,
        origin=origin.origin,
        build_sketcher=no_model,
    )
    with RunDir.create(config.out, config, origin.tokens) as out:
        out.mark(config, origin.tokens)
        return choose(config, out, of_run, stages, found, frontier=config.frontier)


select_documents = select
features = renamed(compute_features, "features")
reselect = renamed(select_again, "reselect")
