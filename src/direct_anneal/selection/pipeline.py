"""`select`, top to bottom as the method goes; `features`, which ends before choosing; `reselect`, which begins so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import nn

from direct_anneal.config.select import SOLVING_FIELDS, FeaturesConfig, SelectConfig
from direct_anneal.data import check_writable, reopen
from direct_anneal.errors import InputError, named_as_in_python
from direct_anneal.features import FeatureStore, SketchedGradients
from direct_anneal.gradients import GradientSketcher, LossFunction
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.progress import Progress, Silent
from direct_anneal.run import checks, manifest
from direct_anneal.run.directory import claim, is_of_another, mark, read_coverage, recorded, retire
from direct_anneal.run.sources import fields_of, sources_of
from direct_anneal.selection.choose import Gathered, Run, choose
from direct_anneal.selection.in_memory import select_samples
from direct_anneal.selection.inputs import gathered
from direct_anneal.selection.stages import Stages
from direct_anneal.solver import Selection


@overload
def select(
    *,
    progress: Progress | None = None,
    frontier: tuple[float, ...] | None = None,
    report: bool = True,
    **options: Any,
) -> Run: ...


@overload
def select(
    model: nn.Module,
    samples: Sequence[Any],
    validation: Sequence[Any],
    loss_fn: LossFunction,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Selection: ...


@named_as_in_python()
def select(*module_and_samples: Any, progress: Progress | None = None, **options: Any) -> Run | Selection:
    """Choose the documents to anneal on, and write them with the evidence beside them.

    With a module first, and samples and a loss after it, as `select_samples`: in memory.

    Otherwise everything is written below `out`. A run that was interrupted goes on where it stopped; one that is
    complete is solved again from its features, in seconds.

    Args:
        progress: shows the stages; silent where left out.
        frontier: as for `reselect`.
        report: write report.html, too (the default). Should that fail, it is a warning: the selection is whole by then.
        options: the fields of `SelectConfig`.

    Raises:
        InputError: something given cannot be used, or the budget cannot be met; says what to do.

    Source: arXiv:2605.31175, Algorithms 1 and 2, with the departures numbered in docs/departures.md.
    """
    if module_and_samples or isinstance(options.get("model"), nn.Module):
        return select_samples(*module_and_samples, progress=progress, **options)
    return select_documents(progress=progress, **options)


def select_documents(
    *,
    progress: Progress | None = None,
    frontier: tuple[float, ...] | None = None,
    report: bool = True,
    **options: Any,
) -> Run:
    """`select` of documents, whose errors name flags, as the command line has them."""
    config = SelectConfig(**options)
    stages, found = Stages(progress or Silent()), list[str]()
    with gathered(config, stages, found) as of_run:
        run = choose(config, of_run, stages, found, frontier=frontier)
        if report:
            _report(run, stages)
        return run


@dataclass(frozen=True)
class Features:
    """What `features` leaves.

    Attributes:
        out: the directory, for `reselect` or for `select` to go on in.
        corpora: of "pool" and "validation" what the manifest of a selection says of them.
        warnings: remarks for the user.
    """

    out: Path
    corpora: dict[str, dict[str, Any]]
    warnings: list[str]


def features(*, progress: Progress | None = None, **options: Any) -> Features:
    """Compute and store the gradients of pool and validation set, as `select` does before it chooses.

    Args:
        progress: shows the stages; silent where left out.
        options: the fields of `SelectConfig`, but those that choosing alone depends on (`SOLVING_FIELDS`).

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    if solving := sorted(SOLVING_FIELDS & options.keys()):
        raise InputError(f"features are the same for every selection, but got {', '.join(solving)}: pass that to solve")
    config = FeaturesConfig(**options)
    stages, found, out = Stages(progress or Silent()), list[str](), Path(config.out)
    with gathered(config, stages, found) as of_run:
        if config.overwrite and is_of_another(out, config, of_run.max_length):
            retire(out, config, of_run.max_length)
        parts = {"pool": (of_run.pool_corpus, of_run.pool), "validation": (of_run.validation_corpus, of_run.validation)}
        found += checks.of_coverage(read_coverage(out))
        for role, (corpus, gradients) in parts.items():
            found += checks.of_corpus(corpus, gradients, role)
        found += checks.of_overlap(of_run.pool_corpus, of_run.validation_corpus)
        return Features(out, {role: manifest.corpus_entry(*part) for role, part in parts.items()}, found)


def reselect(
    run: str | Path,
    *,
    progress: Progress | None = None,
    frontier: tuple[float, ...] | None = None,
    report: bool = True,
    **options: Any,
) -> Run:
    """Choose again from the features of a run, in seconds: the model is not loaded, and that run is left as it is.

    Args:
        run: the directory of a `select` run whose features are complete, finished otherwise or not; or of `features`.
        progress: shows the stages; silent where left out.
        frontier: also solve under these budget ratios, or where empty under a grid of them, and write
            frontier.parquet: objective, bound, budget used and composition by domain for each.
        report: as for `select`.
        options: `out`, and those fields of `SelectConfig` in which this selection differs from that run: size,
            objective, budget, elbow, floors and ceilings, forced documents.

    Raises:
        InputError: the run's features are not complete, its documents have changed since, or as for `select`.
    """
    config = recorded(Path(run), options)
    stages = Stages(progress or Silent())
    origin, out = Path(run), Path(config.out)
    checkpoint = Checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    max_length = checkpoint.window(config.max_length)
    found: list[str] = []
    sources = {role: sources_of(role, config, checkpoint, origin, found) for role in ("pool", "validation")}
    check_writable(sources["pool"])
    corpora, gradients = {}, {}
    with stages.stage("Opening the features", "stores", 4) as advance:
        stores = {role: FeatureStore.open(origin / "features" / role) for role in ("validation", "pool")}
        advance(2)
        for role, store in stores.items():
            corpora[role] = reopen(
                sources[role],
                role=role,
                fields=fields_of(config),
                tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
                vocab_size=checkpoint.vocab_size,
                max_length=max_length,
                directory=origin / "corpus" / role,
                fingerprint=store.fingerprint["data"],
            )
            words = FeatureStore.open(origin / "features" / f"{role}-ngrams")
            gradients[role] = SketchedGradients.load(store, corpora[role].index, words)
            found += [remark for remark in store.remarks() if remark not in found]
            advance(1)

    def no_model() -> GradientSketcher:
        raise InputError(
            f"solve loads no model, and {origin} has kept no such curvature: run select there with --curvature "
            f"{config.curvature} first"
        )

    of_run = Gathered(
        pool_corpus=corpora["pool"],
        validation_corpus=corpora["validation"],
        pool=gradients["pool"],
        validation=gradients["validation"],
        fingerprint=stores["validation"].fingerprint,
        tokenizer=checkpoint.tokenizer_fingerprint(),
        max_length=max_length,
        directory=origin,
        build_sketcher=no_model,
    )
    with claim(out, config, max_length):
        mark(out, config, max_length)
        chosen = choose(config, of_run, stages, found, frontier=frontier)
        if report:
            _report(chosen, stages)
        return chosen


def _report(run: Run, stages: Stages) -> None:
    from direct_anneal.report import try_report  # rich, which a library need not bring along

    with stages.stage("Report", "page", 1) as advance:
        try_report(run.out)
        advance(1)
