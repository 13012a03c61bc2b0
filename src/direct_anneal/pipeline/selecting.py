"""`select`, top to bottom as the method goes; and `reselect`, which begins where features are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from direct_anneal.checkpoint import Checkpoint
from direct_anneal.corpus import Corpus, Fields, Source, check_writable, expand, prepare, reopen
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore, SketchedGradients
from direct_anneal.gradients import GradientSketcher, LossFunction
from direct_anneal.pipeline.choosing import Gathered, Run, choose
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.pipeline.outputs import claim, recorded
from direct_anneal.pipeline.samples import select_samples
from direct_anneal.pipeline.sketching import Sketching
from direct_anneal.pipeline.stages import Stages
from direct_anneal.progress import Progress, Silent
from direct_anneal.selection import Selection


@overload
def select(*, progress: Progress | None = None, **options: Any) -> Run: ...


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


def select(*module_and_samples: Any, progress: Progress | None = None, **options: Any) -> Run | Selection:
    """Choose the documents to anneal on, and write them with the evidence beside them.

    With a module first, and samples and a loss after it, as `select_samples`: in memory.

    Otherwise everything is written below `out`. A run that was interrupted goes on where it stopped; one that is
    complete is solved again from its features, in seconds.

    Args:
        progress: shows the stages; silent where left out.
        options: the fields of `SelectConfig`.

    Raises:
        InputError: something given cannot be used, or the budget cannot be met; says what to do.

    Source: arXiv:2605.31175, Algorithms 1 and 2, with the departures numbered in docs/departures.md.
    """
    if module_and_samples or isinstance(options.get("model"), nn.Module):
        return select_samples(*module_and_samples, progress=progress, **options)
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

    with Sketching(config, checkpoint, max_length, stages, found) as sketch:
        validation = sketch("validation", validation_corpus)  # first: it is small, and shows trouble early
        pool = sketch("pool", pool_corpus)

    gathered = Gathered(
        pool_corpus=pool_corpus,
        validation_corpus=validation_corpus,
        pool=pool,
        validation=validation,
        fingerprint=sketch.fingerprint(validation_corpus),
        tokenizer=checkpoint.tokenizer_fingerprint(),
        max_length=max_length,
        directory=out,
        build_sketcher=sketch.build,
    )
    return choose(config, gathered, stages, found)


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
    stages = Stages(progress or Silent())
    origin, out = Path(run), Path(config.out)
    checkpoint = Checkpoint(config.model, trust_remote_code=config.trust_remote_code)
    max_length = config.window(checkpoint.context_length)
    found: list[str] = []
    sources = {role: _sources(role, getattr(config, role), origin, found) for role in ("pool", "validation")}
    check_writable(sources["pool"])
    corpora, gradients = {}, {}
    with stages.stage("Opening the features", "corpora", 2) as advance:
        stores = {role: FeatureStore.open(origin / "features" / role) for role in ("validation", "pool")}
        for role, store in stores.items():
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
            advance(1)
    claim(out, config, max_length)

    def no_model() -> GradientSketcher:
        raise InputError(
            f"solve loads no model, and {origin} has kept no such curvature: run select there with --curvature "
            f"{config.curvature} first"
        )

    gathered = Gathered(
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
    return choose(config, gathered, stages, found, frontier=frontier)


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
    return Fields(text=config.text_field, id=config.id_field, domain=config.domain_field, prompt=config.prompt_field)


def _read(
    role: str, sources: list[Source], config: SelectConfig, checkpoint: Checkpoint, max_length: int, stages: Stages
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
