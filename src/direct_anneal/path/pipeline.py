"""The descent path, top to bottom: find its depth, walk it, take every document's loss where it starts and ends.

N documents of the pool, M of the validation set, k folds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features.columns import ROWS_PER_SHARD
from direct_anneal.gradients import adam_moments, optimizer_fingerprint
from direct_anneal.io.digests import sha256
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.probes import require_language_model
from direct_anneal.path.config import PathConfig
from direct_anneal.path.damage import (
    FEWEST_HEAD_TOKENS,
    common_shares,
    num_shuffles,
    order_chances,
    repeated_share,
    word_starts,
)
from direct_anneal.path.documents import Texts, overlap
from direct_anneal.path.losses import PathLosses
from direct_anneal.path.parts import Part, described, parts_of
from direct_anneal.path.scorer import Elsewhere
from direct_anneal.path.scores import Scores, score_by_others
from direct_anneal.path.scoring import Sums
from direct_anneal.path.walks import Moments, Walks, folds_of, found_depth, walked
from direct_anneal.progress import Progress, Work

VERSION = 2  # of what the stored numbers mean


def descend(
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    config: PathConfig,
    *,
    directory: Path | str,
    work: Path,
    max_length: int,
    stages: Progress,
    rows_per_shard: int = ROWS_PER_SHARD,
    replace: bool = False,
    elsewhere: Elsewhere | None = None,
    known_start: NDArray[np.float64] | None = None,
) -> PathLosses:
    """Anneal the checkpoint on the validation set, and take every pool document's loss at both ends of that path.

    s_i = ℓ_i(θ_s) − ℓ_i(θ_T), ℓ the mean token negative log-likelihood, is the exact progress of document i along the
    path. Rate and depth are those at which validation text that was left out gains most. A document of the pool that is
    in the validation set, token for token, is scored at the ends of the folds' walks that left it out.

    A run that was killed goes on from the last state of its walk, or from the last shard of losses, and ends with the
    same bytes, on a CPU with the same number of threads. Losses do not depend on who computes which shard, nor on any
    size of batches that could be chosen: there is none.

    Args:
        checkpoint: θ_s.
        validation: M documents that stand for what the model is to be good at.
        pool: N documents.
        config: how the path is walked.
        directory: where the losses lie, or shall lie: a path, or a URL that fsspec opens.
        work: a directory of this machine for states of walks and weights of ends.
        max_length: tokens of a window; a longer document is cut, and its loss the mean over its tokens.
        stages: where progress is shown.
        rows_per_shard: documents of a shard of losses.
        replace: discard the losses of another run that lie there instead of refusing them.
        elsewhere: gives the losses of shards, as `Scorer` does, by workers that see `directory`; walks are made here.
        known_start: mean token losses of the pool at θ_s, as they came with gradients in the same precision, (N,), NaN
            where there is none. Drops are the same up to rounding, 1e-5 of a loss.

    Raises:
        InputError: validation text that was left out gains from no rate, the validation set is too small for the
            folds, a loss is not finite while walking, or one window does not fit into memory.

    Source: ours; relatives are conditional loss reduction (CoLoR-Filter, arXiv:2406.10670) and target-aligned paths
    (arXiv:2605.09404).
    Cost: two forward passes over the pool (k + 1 where `scored_ends` is "folds"); one less with `known_start`. With
    `read_order` one over at most 128 tokens of each document, with `known_start` two. Beside the walks: at most
    `max_passes` (len(learning_rates) + k) passes of training over the validation set. Restrained paths take a forward
    pass more for each, and a gradient of each document. Memory: the model twice in float32, and Adam's moments.
    """
    wanted = {
        "version": VERSION,
        "model": checkpoint.weights_fingerprint(),
        "validation": validation.fingerprint,
        "max_length": max_length,
        "torch": torch.__version__,
        **config.defining,
        "optimizer": optimizer_fingerprint(config.optimizer),
    }
    whole_fingerprint = {**wanted, "pool": pool.fingerprint}
    with suppress(InputError):  # not there, or not whole: then it is made below
        return PathLosses.load(directory, json.loads(json.dumps(whole_fingerprint)))
    mark = sha256(json.dumps(wanted, sort_keys=True))
    work.mkdir(parents=True, exist_ok=True)
    model = checkpoint.load_model(config.device, "float32")
    require_language_model(model, vocab_size=checkpoint.vocab_size, window=max_length, name=checkpoint.name)
    texts = Texts.of(validation)
    start = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    run = Walks(config, checkpoint, model, start, _moments(config, model), texts, max_length, work, mark, stages)
    folds = folds_of(run)
    depth = found_depth(run, folds)
    passes = depth.share * config.max_passes
    shared = overlap(pool, texts)
    parts = parts_of(validation, run)
    needed = {name: part.walks(config, folds, shared) for name, part in parts.items()}
    plain, restrained = {}, {}
    for name, rows in ((name, rows) for walks in needed.values() for name, rows in walks.items()):
        plain[name] = walked(run, name, rows, depth)
        if run.restraint is not None:
            restrained[name] = walked(run, f"{name}-restrained", rows, depth, restraint=run.restraint)

    home = str(directory).rstrip("/")
    with Scores(run, pool, home, wanted, rows_per_shard, replace, elsewhere) as scores:
        at_start = scores.start(known_start)
        signs = _signs(run, scores, pool, at_start)
        slopes = None if run.restraint is None else scores.slopes(len(run.restraint.eigenvalues))
        ends = [
            _losses_at_ends(run, scores, pool, parts, needed, at_end, shared, folds, suffix)
            for at_end, suffix in ((plain, ""), (restrained, "-restrained"))
            if at_end
        ]
    losses = PathLosses(
        ids=pool.index["id"].combine_chunks(),
        num_tokens=at_start.predicted,
        start=at_start.means,
        ends=ends[0],
        names=tuple(parts),
        restrained=ends[1] if restrained else None,
        slopes=slopes,
        **signs,
        described={
            "version": VERSION,
            "fingerprints": {
                "model": wanted["model"],
                "optimizer": wanted["optimizer"],
                "validation": validation.fingerprint,
                "pool": pool.fingerprint,
            },
            "config": config.defining,
            "window": run.window,
            "batch_size": run.batch_size,
            "steps": {
                name: run.steps_of(texts.take(rows), passes)
                for walks in needed.values()
                for name, rows in walks.items()
            },
            "passes": passes,
            "parts": described(parts, texts.ids),
            "in_validation": len(shared),
            "restrained": [] if run.restraint is None else run.restraint.eigenvalues.tolist(),
            **depth.described,
        },
    )
    losses.save(directory, whole_fingerprint, rows_per_shard=rows_per_shard, replace=replace)
    return losses


def _losses_at_ends(
    run: Walks,
    scores: Scores,
    pool: Corpus,
    parts: Mapping[str, Part],
    needed: Mapping[str, Mapping[str, object]],
    at_end: Mapping[str, Path],
    shared: Mapping[int, Sequence[int]],
    folds: NDArray[np.int64],
    suffix: str,
) -> NDArray[np.float64]:
    """Compute mean losses of every document at the end of each part's path, (N, k).

    Args:
        needed: names of each part's walks.
        at_end: weights by name of the walk.
        shared: documents of the pool that are in the validation set; these are scored by walks that left them out.
        suffix: of names of stores, plain walks having none.
    """
    ends = np.empty((pool.num_samples, len(parts)))
    for place, (name, part) in enumerate(parts.items()):
        scored = [walk for walk in needed[name] if part.is_scored(walk, run.config)]
        ends[:, place] = np.mean([scores.at(walk + suffix, at_end[walk]).means for walk in scored], axis=0)
        if own := part.shared(shared):
            left = {fold: at_end.get(part.left(fold)) for fold in set(folds)}
            score_by_others(run, pool, own, folds, left, ends[:, place])
    return ends


def _signs(run: Walks, scores: Scores, pool: Corpus, start: Sums) -> dict[str, NDArray[np.float64]]:
    """Look for signs of damage, by the names that `PathLosses` has for them; NaN where one cannot be told."""
    work = Work(role="pool", unit="tokens")
    with run.stages.stage("Repetition", "documents", 3 * pool.num_samples, work=work) as advance:
        repeated = np.zeros(pool.num_samples)
        for row in range(pool.num_samples):
            repeated[row] = repeated_share(pool.tokens(row))
            advance(1)
        common = common_shares(pool, advance)
    order = np.full(pool.num_samples, np.nan)
    if run.config.read_order and run.checkpoint.has_tokenizer:
        mixed = scores.mixed(word_starts(run.checkpoint.load_tokenizer(), run.checkpoint.vocab_size))
        chances = order_chances(start.head, mixed["nats"], mixed["deviation"], num_shuffles(scores.heads))
        order = np.where(mixed["predicted"] >= FEWEST_HEAD_TOKENS - 1, chances, np.nan)
    return {"repeated": repeated, "common": common, "order": order}


def _moments(config: PathConfig, model: nn.Module) -> Moments | None:
    """Load Adam's moments as the checkpoint's own training left them, where asked for."""
    if config.optimizer is None:
        return None
    try:
        return adam_moments(Path(config.optimizer), model)
    except ValueError as error:
        raise InputError(field="optimizer", must="fit the model", got=f"but {error}") from error
