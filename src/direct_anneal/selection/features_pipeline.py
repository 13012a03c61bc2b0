"""`features`, top to bottom: the first half of `select`, whole or as one job of several, and the jobs put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from direct_anneal.config.features import ColumnsConfig, ComputeConfig, FeaturesConfig
from direct_anneal.config.jobs import job_of
from direct_anneal.config.signature import renamed, takes
from direct_anneal.data import Corpus, Source, prepare
from direct_anneal.progress import current_progress
from direct_anneal.run import checks
from direct_anneal.run.layout import ROLES, roles_of
from direct_anneal.run.safety import likeness_checks, num_shared, overlap_check
from direct_anneal.selection.jobs import caches_of_jobs, config_of_job, merge_shards, remove_jobs
from direct_anneal.selection.losses import losses_in_part, walk_of
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.pipeline import computed, reading
from direct_anneal.selection.result import Features
from direct_anneal.selection.sketching import Sketching
from direct_anneal.selection.stages import Stages


@takes(ComputeConfig)
def compute_features(config: ComputeConfig) -> Features:
    """Compute and store what `select` does before it chooses: gradients, and losses along the path if asked for.

    With `shards` a part of them alone, of which `merge_features` makes the whole.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    check_machine(config)
    if config.shards is not None:
        return _part_of_features(config.whole, *job_of(config.shards))
    return _all_features(config.whole)


def merge_features(run: str | Path, *, trust_remote_code: bool = False) -> Features:
    """Put together what the jobs of `compute_features` left in a directory.

    The model is loaded for losses along the path alone, and nothing of it computed but losses of documents that are in
    the validation set, too.

    Raises:
        InputError: jobs or shards are missing or damaged, or not of one another; says which to run again.
    """
    merged = _all_features(merge_shards(Path(run), trust_remote_code=trust_remote_code))
    remove_jobs(Path(run))
    return merged


def _part_of_features(config: ColumnsConfig, number: int, count: int) -> Features:
    """Return one job's. Cost: its share of tokens and gradients; an index of all documents, a check of all tokens."""
    stages, found, own = Stages(current_progress()), list[str](), config_of_job(config, number, count)
    home = Path(config.out)

    def read(sources: Sequence[Source], *, role: str, **given: Any) -> Corpus:
        return prepare(sources, role=role, shared=caches_of_jobs(home, role, number, count), **given)

    with reading(own, stages, found, home=home, read=read) as documents:
        run, tokens = documents.run, documents.tokens
        with Sketching(own, documents.checkpoint, run, tokens.max_length, stages, found) as sketch:
            for role in ("validation", *roles_of(config)[2:], "pool"):
                made = sketch.part(role, documents.corpora[role], number, count)
                found.append(f"{role}: this job has {made:,} shards")
        if (walk := walk_of(own)) is not None:
            pair = documents.corpora["validation"], documents.corpora["pool"]
            losses_in_part(
                own, walk, documents.checkpoint, *pair, tokens, run, stages, lambda shard: shard % count == number
            )
        run.mark(own, tokens)
    return Features(Path(config.out), {}, found)


def _all_features(config: FeaturesConfig) -> Features:
    stages, found = Stages(current_progress()), list[str]()
    with reading(config, stages, found) as documents:
        known, run = computed(config, documents, stages, found), documents.run
        if config.overwrite and run.difference(config, documents.tokens):
            run.retire(config, documents.tokens)
        found += [*checks.of_coverage(run.coverage()), *known.left_out()]
        if shared := num_shared(*(documents.corpora[role] for role in ROLES)):
            found.append(overlap_check(shared).text)
        alike = likeness_checks(known.likeness())
        found += [check.text for check in alike if check.state != "good"]
        return Features(run.path, known.corpora_entry(), found)


features = renamed(compute_features, "features")
