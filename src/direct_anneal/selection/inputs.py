"""What `select`, `features`, `solve` and `plan` begin with: the documents that were named, and their gradients."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus, Source, check_fields, check_writable, prepare
from direct_anneal.features import SketchedGradients
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation, fields_of, sources_of
from direct_anneal.selection.choose import Gathered
from direct_anneal.selection.constraints import constraints
from direct_anneal.selection.losses import is_path_alone, losses_along, path_objective, usable
from direct_anneal.selection.sketching import Sketching
from direct_anneal.selection.stages import Stages


@contextmanager
def gathered(config: FeaturesConfig, stages: Stages, found: list[str]) -> Iterator[Gathered]:
    """Read the documents and compute what gradients are missing; the run's directory is held until the end.

    Args:
        found: remarks for the user are added.

    Raises:
        InputError: something given cannot be used.
    """
    out = Path(config.out)
    checkpoint = Checkpoint.of(config)
    tokens = Tokenisation.of(checkpoint, config.max_length)
    found += checkpoint.special_tokens.notes
    pool_sources = sources_of("pool", config, tokens, out, found)
    validation_sources = sources_of("validation", config, tokens, out, found)
    check_writable(pool_sources)
    with RunDir.create(out, config, tokens) as run:
        pool_corpus = _read("pool", pool_sources, config, checkpoint, tokens, stages)
        validation_corpus = _read("validation", validation_sources, config, checkpoint, tokens, stages)
        check_writable(pool_sources)  # those that were fetched, too
        found += check_fields(fields_of(config), {"pool": pool_corpus, "validation": validation_corpus})
        if isinstance(config, SelectConfig):  # both to fail before the long part
            constraints(config, pool_corpus.index, *config.size_of(pool_corpus.num_tokens))
        if not is_path_alone(config):
            stages.note(_extent(config, pool_corpus, validation_corpus))

        with Sketching(config, checkpoint, run, tokens.max_length, stages, found) as sketch:
            fingerprint, build_sketcher = sketch.fingerprint(validation_corpus), sketch.build
            gradients: dict[str, SketchedGradients] = {}
            if not is_path_alone(config):
                gradients["validation"] = sketch("validation", validation_corpus)  # small, and shows trouble early
                run.mark(config, tokens)
                gradients["pool"] = sketch("pool", pool_corpus)
        run.mark(config, tokens)
        losses = None
        if (objective := path_objective(config)) is not None:
            assert isinstance(config, SelectConfig)
            losses = losses_along(config, objective, checkpoint, validation_corpus, pool_corpus, tokens, run, stages)
        pool, validation, path = usable(pool_corpus, validation_corpus, gradients, losses)

        yield Gathered(
            pool_corpus=pool_corpus,
            validation_corpus=validation_corpus,
            pool=pool,
            validation=validation,
            path=path,
            fingerprint=fingerprint,
            tokens=tokens,
            origin=run,
            build_sketcher=build_sketcher,
        )


def _extent(config: FeaturesConfig, pool: Corpus, validation: Corpus) -> str:
    """What is known beforehand of the long part."""
    num_tokens = int(pool.num_tokens.sum() + validation.num_tokens.sum())
    num_bytes = 2 * config.sketch_size * (pool.num_samples + validation.num_samples)
    return (
        f"Gradients of {pool.num_samples:,} + {validation.num_samples:,} documents, {num_tokens:,} tokens; their "
        f"features take {num_bytes / 1e6:,.1f} MB, free are {shutil.disk_usage(config.out).free / 1e6:,.0f} MB"
    )


def _read(
    role: str,
    sources: list[Source],
    config: FeaturesConfig,
    checkpoint: Checkpoint,
    tokens: Tokenisation,
    stages: Stages,
) -> Corpus:
    with stages.stage(f"Reading the {role}", "documents") as advance:
        return prepare(
            sources,
            role=role,
            fields=fields_of(config),
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=tokens.tokenizer,
            vocab_size=tokens.vocab_size,
            max_length=tokens.max_length,
            directory=Path(config.out) / "corpus" / role,
            advance=advance,
        )
