"""The descent path, top to bottom: find its depth, walk it, take every document's loss where it starts and ends.

Where no path is wanted, documents are read for signs of damage alone.

N documents of the pool, M of the validation set, k folds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features.columns import ROWS_PER_SHARD, ColumnStore
from direct_anneal.gradients import adam_moments, optimizer_fingerprint
from direct_anneal.io.digests import hashed_order, sha256
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.probes import require_language_model
from direct_anneal.path.config import PathConfig
from direct_anneal.path.damage import repetition, word_starts
from direct_anneal.path.depth import Depth
from direct_anneal.path.documents import Texts, overlap
from direct_anneal.path.losses import PathLosses
from direct_anneal.path.parts import Part, described, parts_of
from direct_anneal.path.scorer import Elsewhere
from direct_anneal.path.scores import Scores, predicted_tokens, score_by_others
from direct_anneal.path.walks import Moments, Walks, folds_of, found_depth, replayed, steps_of_walk, walked
from direct_anneal.progress import Progress, Work

VERSION = 5  # of what the stored numbers mean

_OF_SIGNS = ("dtype", "scored_weights", "read_order")  # options that signs of damage depend on


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
    in the validation set, token for token, is scored at the ends of the folds' walks that left it out. With
    `walk_replay` the drop begins at the end of a walk on the replay alone instead of θ_s.

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
    `read_order` one over 48 tokens of each document, with `known_start` or `paths` "none" two; and over as many as 128
    of documents whose order these leave open. Beside the walks: at most `max_passes` (len(learning_rates) + k) passes
    of training over the validation set. A share s of replay makes a walk 1 / (1 − s) times as long, though not those
    of the search, and takes a walk on that replay alone and one forward pass more. Restrained paths take a
    forward pass more for each, and a gradient of each document. With `paths` "none" signs of damage alone: what
    `read_order` takes. Memory: the model twice in float32, and Adam's moments.
    """
    made_of = _made_of(checkpoint, validation, pool, config, max_length)
    whole_fingerprint = {**made_of, "pool": pool.fingerprint}
    if (kept := _kept(directory, whole_fingerprint, is_walked=config.paths != "none")) is not None:
        return kept
    run = _at_start(checkpoint, validation, pool, config, work, max_length, stages, made_of)
    home = str(directory).rstrip("/")
    if config.paths == "none":
        with Scores(run, pool, home, made_of, rows_per_shard, replace, elsewhere) as scores:
            losses = _without_path(run, scores, pool, made_of)
        losses.save(directory, whole_fingerprint, rows_per_shard=rows_per_shard, replace=replace)
        return losses
    path = _walked(run, validation)
    with Scores(run, pool, home, made_of, rows_per_shard, replace, elsewhere) as scores:
        at_start = scores.start(known_start)
        signs = _signs(run, scores, pool, known_start is not None)
        slopes = None if run.restraint is None else scores.slopes(len(run.restraint.eigenvalues))
        ends = _losses_at_ends(path, scores, pool, path.plain)
        replayed = _losses_at_ends(path, scores, pool, path.replay) if path.replay else None
        restrained = _losses_at_ends(path, scores, pool, path.restrained) if path.restrained else None
    losses = PathLosses(
        ids=pool.index["id"].combine_chunks(),
        num_tokens=at_start.predicted,
        start=at_start.means,
        ends=ends,
        names=tuple(path.parts),
        replayed=replayed,
        restrained=restrained,
        slopes=slopes,
        **signs,
        described={
            "version": VERSION,
            "fingerprints": {
                "model": made_of["model"],
                "optimizer": made_of["optimizer"],
                "validation": validation.fingerprint,
                "pool": pool.fingerprint,
            },
            "config": config.defining,
            "window": run.window,
            "batch_size": run.batch_size,
            "steps": {
                name: sum(steps_of_walk(run, rows, path.depth))
                for walks in path.needed.values()
                for name, rows in walks.items()
            },
            "passes": path.passes,
            "parts": described(path.parts, run.texts.ids),
            "in_validation": len(path.run.shared),
            "restrained": [] if run.restraint is None else run.restraint.eigenvalues.tolist(),
            **path.depth.described,
        },
    )
    losses.save(directory, whole_fingerprint, rows_per_shard=rows_per_shard, replace=replace)
    return losses


def descend_in_part(
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    config: PathConfig,
    *,
    directory: Path | str,
    work: Path,
    max_length: int,
    stages: Progress,
    wanted: Callable[[int], bool],
    knows_start: bool,
    rows_per_shard: int = ROWS_PER_SHARD,
    replace: bool = False,
) -> None:
    """Walk the path as `descend` does, and keep the losses of those shards of the pool that are wanted.

    `descend` finds them there and computes the rest.

    Args:
        wanted: whether a shard is.
        knows_start: True if `descend` will be given the losses at θ_s.
        replace: discard losses of another path instead of refusing them; those of this one stay, whoever made them.

    Raises:
        InputError: as of `descend`.
    """
    made_of = _made_of(checkpoint, validation, pool, config, max_length)
    run = _at_start(checkpoint, validation, pool, config, work, max_length, stages, made_of)
    path = None if config.paths == "none" else _walked(run, validation)
    with Scores(run, pool, str(directory).rstrip("/"), made_of, rows_per_shard, replace, wanted=wanted) as scores:
        knows_start = knows_start or path is None
        if not knows_start:
            scores.keep_start()
        if run.config.read_order and run.checkpoint.has_tokenizer:
            scores.keep_order(_word_starts(run), knows_start)
        if path is None:
            return
        if run.restraint is not None:
            scores.keep_slopes(len(run.restraint.eigenvalues))
        for walks in (path.plain, path.restrained, path.replay):
            for part in path.parts:
                for name in path.scored(part) if walks else ():
                    scores.keep(_point(walks[name]), walks[name])


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The walks of a path, made.

    Attributes:
        folds: of each validation document, (M,).
        needed: documents of each walk, by part and name.
        plain, restrained, replay: weights at the end of each walk, by name; of replay alone, where there is any.
    """

    run: Walks
    folds: NDArray[np.int64]
    depth: Depth
    parts: Mapping[str, Part]
    needed: Mapping[str, Mapping[str, NDArray[np.intp]]]
    plain: Mapping[str, Path]
    restrained: Mapping[str, Path]
    replay: Mapping[str, Path]

    @property
    def passes(self) -> float:
        return self.depth.share * self.run.config.max_passes

    def scored(self, part: str) -> list[str]:
        """Return the names of a part's walks at whose ends the whole pool is scored."""
        return [walk for walk in self.needed[part] if self.parts[part].is_scored(walk, self.run.config)]


def _made_of(
    checkpoint: Checkpoint, validation: Corpus, pool: Corpus, config: PathConfig, max_length: int
) -> dict[str, Any]:
    """Name all that a path depends on, or signs of damage without one."""
    start = {
        "version": VERSION,
        "model": checkpoint.weights_fingerprint(),
        "max_length": max_length,
        "torch": torch.__version__,
    }
    if config.paths == "none":
        return {**start, **{name: config.defining[name] for name in _OF_SIGNS}, "paths": "none"}
    replay = {"replay": pool.fingerprint} if config.walk_replay else {}
    return {
        **start,
        "validation": validation.fingerprint,
        **replay,
        **config.defining,
        "optimizer": optimizer_fingerprint(config.optimizer),
    }


def _kept(directory: Path | str, fingerprint: Mapping[str, Any], *, is_walked: bool) -> PathLosses | None:
    """Return what was saved of this fingerprint; where only signs are wanted, those that came with any path."""
    wanted = json.loads(json.dumps(fingerprint))
    with suppress(InputError):  # not there, or not whole: then it is made
        if is_walked:
            return PathLosses.load(directory, wanted)
        found = ColumnStore.open(directory).fingerprint
        if all(found.get(name) == value for name, value in wanted.items() if name != "paths"):
            return PathLosses.load(directory)
    return None


def _at_start(
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    config: PathConfig,
    work: Path,
    max_length: int,
    stages: Progress,
    made_of: Mapping[str, Any],
) -> Walks:
    """Load the model, θ_s, and the validation set."""
    mark = sha256(json.dumps(made_of, sort_keys=True))
    model = checkpoint.load_model(config.device, "float32")
    require_language_model(model, vocab_size=checkpoint.vocab_size, window=max_length, name=checkpoint.name)
    texts = Texts.of(validation)
    start = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    moments = None if config.paths == "none" else _moments(config, model)
    shared = {} if config.paths == "none" else overlap(pool, texts)
    replay = None
    if config.paths != "none" and (share := config.walk_replay):
        num_tokens = config.max_passes * int(texts.num_tokens.sum()) * share / (1 - share)
        replay = _replay(pool, shared, num_tokens, config)
    return Walks(config, checkpoint, model, start, moments, texts, shared, replay, max_length, work, mark, stages)


def _walked(run: Walks, validation: Corpus) -> _Path:
    """Find the depth and walk the path, as far as that was not done before."""
    config = run.config
    run.directory.mkdir(parents=True, exist_ok=True)
    folds = folds_of(run)
    depth = found_depth(run, folds)
    parts = parts_of(validation, run)
    needed = {name: part.walks(config, folds, run.shared) for name, part in parts.items()}
    plain, restrained, replay = {}, {}, {}
    for name, rows in ((name, rows) for walks in needed.values() for name, rows in walks.items()):
        plain[name] = walked(run, name, rows, depth)
        if run.restraint is not None:
            restrained[name] = walked(run, f"{name}-restrained", rows, depth, restraint=run.restraint)
        if config.walk_replay:
            replay[name] = replayed(run, f"{name}-replay", rows, depth)
    return _Path(
        run=run,
        folds=folds,
        depth=depth,
        parts=parts,
        needed=needed,
        plain=plain,
        restrained=restrained,
        replay=replay,
    )


def _without_path(run: Walks, scores: Scores, pool: Corpus, made_of: Mapping[str, Any]) -> PathLosses:
    """Read signs of damage alone."""
    unknown = np.full(pool.num_samples, np.nan)
    return PathLosses(
        ids=pool.index["id"].combine_chunks(),
        num_tokens=predicted_tokens(pool.num_tokens, pool.num_prompt, run.max_length),
        start=unknown,
        ends=np.empty((pool.num_samples, 0)),
        names=(),
        **_signs(run, scores, pool, knows_start=True),
        described={
            "version": VERSION,
            "fingerprints": {"model": made_of["model"], "optimizer": None, "pool": pool.fingerprint},
            "config": {"paths": "none"},
        },
    )


def _replay(pool: Corpus, shared: Collection[int], num_tokens: float, config: PathConfig) -> Texts:
    """Read random documents of the pool with so many tokens, or all there are, in the order of hashes of their ids.

    Args:
        shared: documents that are in the validation set, which are left out, by position.

    Cost: a hash of every id; memory 16 bytes a document of the pool.
    """
    ids, may = pool.index["id"], np.ones(pool.num_samples, dtype=bool)
    may[list(shared)] = False
    if not may.any():
        raise InputError(
            field="walk_replay",
            must="be 0 where every document of the pool is in the validation set",
            got=config.walk_replay,
        )
    order = hashed_order(f"{config.seed}:replay:{each.as_py()}" for each in ids)
    order = order[may[order]]
    rows = order[: 1 + int(np.searchsorted(np.cumsum(pool.num_tokens[order]), num_tokens))]
    return Texts(ids.take(rows).to_pylist(), [pool.tokens(row) for row in rows.tolist()], pool.num_prompt[rows])


def _losses_at_ends(path: _Path, scores: Scores, pool: Corpus, at_end: Mapping[str, Path]) -> NDArray[np.float64]:
    """Compute mean losses of every document at the end of each part's path, (N, k).

    Documents that are in the validation set, too, are scored by walks that left them out.

    Args:
        at_end: weights by name of the walk.
    """
    run, ends = path.run, np.empty((pool.num_samples, len(path.parts)))
    for place, (name, part) in enumerate(path.parts.items()):
        scored = [scores.at(_point(at_end[walk]), at_end[walk]).means for walk in path.scored(name)]
        ends[:, place] = np.mean(scored, axis=0)
        if own := part.shared(run.shared):
            left = {fold: at_end.get(part.left(fold)) for fold in set(path.folds)}
            score_by_others(run, pool, own, path.folds, left, ends[:, place])
    return ends


def _point(end: Path) -> str:
    """Return the name of the end of a walk."""
    return end.stem.removeprefix("end-")


def _signs(run: Walks, scores: Scores, pool: Corpus, knows_start: bool) -> dict[str, NDArray[np.float64]]:
    """Look for signs of damage, by the names that `PathLosses` has for them; NaN where one cannot be told."""
    work = Work(role="pool", unit="tokens")
    with run.stages.stage("Repetition", "documents", 2 * pool.num_samples, work=work) as advance:
        repeated, common = repetition(pool, advance)
    order = np.full(pool.num_samples, np.nan)
    if run.config.read_order and run.checkpoint.has_tokenizer:
        order = scores.order(_word_starts(run), knows_start)
    return {"repeated": repeated, "common": common, "order": order}


def _word_starts(run: Walks) -> NDArray[np.bool_]:
    return word_starts(run.checkpoint.load_tokenizer(), run.checkpoint.vocab_size)


def _moments(config: PathConfig, model: nn.Module) -> Moments | None:
    """Load Adam's moments as the checkpoint's own training left them, where asked for."""
    if config.optimizer is None:
        return None
    try:
        return adam_moments(Path(config.optimizer), model)
    except ValueError as error:
        raise InputError(field="optimizer", must="fit the model", got=f"but {error}") from error
