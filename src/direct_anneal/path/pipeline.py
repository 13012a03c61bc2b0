"""The descent path, top to bottom: find its depth, walk it, take every document's loss where it starts and ends.

N documents of the pool, M of the validation set, k folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features.columns import ROWS_PER_SHARD, ColumnStore
from direct_anneal.gradients import adam_moments
from direct_anneal.io.atomic import replacing
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path.config import PathConfig
from direct_anneal.path.depth import Depth, deepest, has_turned, points
from direct_anneal.path.documents import Texts, overlap
from direct_anneal.path.losses import PathLosses
from direct_anneal.path.scoring import BATCH_TOKENS, FEWEST_BATCH_TOKENS, OutOfMemoryError, losses_of
from direct_anneal.path.walk import Steps, keep_weights, kept_note, put_weights, walk
from direct_anneal.progress import Advance, Items
from direct_anneal.train.packing import PackedWindows, Part

VERSION = 1  # of what the stored numbers mean
COLUMNS = ("nats", "predicted")
RECORD = "path.json"

_WINDOW = 512
_STEPS_A_PASS = 32
_MOST_STEP_TOKENS = 16384
_POINTS = 12  # of a walk, at which the left-out loss is taken


Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]


class Stages(Protocol):
    """Shows stages, as `progress.Progress` does."""

    def stage(
        self, name: str, unit: str, total: int | None = None, items: Items | None = None
    ) -> AbstractContextManager[Advance]:
        """Show one stage while it lasts."""


@dataclass(frozen=True)
class _Run:
    """What all walks and passes of one run share."""

    config: PathConfig
    checkpoint: Checkpoint
    model: nn.Module
    start: Mapping[str, torch.Tensor]
    moments: Moments | None
    texts: Texts
    max_length: int
    directory: Path
    mark: str
    stages: Stages

    @property
    def window(self) -> int:
        """T of a training window."""
        return min(self.config.window or _WINDOW, self.max_length)

    @property
    def batch_size(self) -> int:
        """Windows of a step: the same for all walks, whatever part of the validation set they see."""
        total = int(self.texts.num_tokens.sum())
        tokens = self.config.batch_tokens or min(total // _STEPS_A_PASS, _MOST_STEP_TOKENS)
        return max(1, tokens // self.window)

    def steps_of(self, texts: Texts, passes: float) -> int:
        """Steps of so many passes over these documents."""
        return max(1, round(passes * int(texts.num_tokens.sum()) / (self.batch_size * self.window)))

    def mark_of(self, rows: NDArray[np.intp], steps: Steps) -> str:
        """A hash of all that one walk depends on."""
        content = [self.mark, rows.tolist(), {**asdict(steps), "checkpoint_steps": None}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def return_to_start(self) -> None:
        """Put the model back to θ_s."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.start[name])


def descend(
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    config: PathConfig,
    *,
    directory: Path | str,
    work: Path,
    max_length: int,
    stages: Stages,
    rows_per_shard: int = ROWS_PER_SHARD,
    replace: bool = False,
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

    Raises:
        InputError: validation text that was left out gains from no rate, the validation set is too small for the
            folds, a loss is not finite while walking, or one window does not fit into memory.

    Source: ours; relatives are conditional loss reduction (CoLoR-Filter, arXiv:2406.10670) and target-aligned paths
    (arXiv:2605.09404).
    Cost: two forward passes over the pool (k + 1 where `scored_ends` is "folds"), beside the walks: at most
    `max_passes` (len(learning_rates) + k) passes of training over the validation set. Memory: the model twice in
    float32, and Adam's moments.
    """
    wanted = {
        "version": VERSION,
        "model": checkpoint.weights_fingerprint(),
        "validation": validation.fingerprint,
        "max_length": max_length,
        "torch": torch.__version__,
        **config.defining,
        "optimizer": None if config.optimizer is None else _digest(config.optimizer),
    }
    mark = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    work.mkdir(parents=True, exist_ok=True)
    model = checkpoint.load_model(config.device, "float32")
    texts = Texts.of(validation)
    start = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    run = _Run(config, checkpoint, model, start, _moments(config, model), texts, max_length, work, mark, stages)
    folds = _folds(run)
    depth = _found_depth(run, folds)
    passes = depth.share * config.max_passes
    shared = overlap(pool, texts)
    everything = np.arange(texts.num_samples)
    ends = {f"fold-{fold}": np.flatnonzero(folds != fold) for fold in range(config.num_folds)}
    whole = {"whole": everything} if config.scored_ends == "whole" else {}
    needed = {**whole, **(ends if not whole or shared else {})}
    walked = {name: _walked(run, name, rows, depth) for name, rows in needed.items()}

    scores = _Scores(run, pool, str(directory).rstrip("/"), wanted, rows_per_shard, replace)
    start_nats, predicted = scores.at("start", None)
    scored = list(whole or ends)
    per_end = {name: scores.at(name, walked[name])[0] for name in scored}
    with np.errstate(invalid="ignore", divide="ignore"):
        start_loss = start_nats / predicted
        end_loss = np.mean([nats / predicted for nats in per_end.values()], axis=0)
    if shared:
        _score_by_others(run, pool, shared, folds, walked, end_loss)
    return PathLosses(
        ids=pool.index["id"].combine_chunks(),
        num_tokens=predicted,
        start=start_loss,
        ends=end_loss[:, None],
        names=("validation",),
        described={
            "version": VERSION,
            "config": config.defining,
            "window": run.window,
            "batch_size": run.batch_size,
            "steps": {
                name: run.steps_of(texts.take(rows), depth.share * config.max_passes) for name, rows in needed.items()
            },
            "passes": passes,
            "in_validation": len(shared),
            **depth.described,
        },
    )


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            field="optimizer", must="be a file that torch.save wrote", got=f"but {path}: {error.strerror}"
        ) from error


def _moments(config: PathConfig, model: nn.Module) -> Moments | None:
    """Adam's moments as the checkpoint's own training left them, where asked for."""
    if config.optimizer is None:
        return None
    try:
        return adam_moments(Path(config.optimizer), model)
    except ValueError as error:
        raise InputError(field="optimizer", must="fit the model", got=f"but {error}") from error


def _folds(run: _Run) -> NDArray[np.int64]:
    """The fold of each validation document, (M,)."""
    folds = run.texts.of_folds(max(1, run.config.num_folds))
    if run.config.num_folds and len(np.unique(folds)) < run.config.num_folds:
        raise InputError(
            subject="the validation set",
            must=f"hold at least {run.config.num_folds} different documents, one for each of {option('num_folds')}",
            got=f"but it holds {len(np.unique(folds))}",
            do="give more, or fewer folds",
        )
    return folds


def _found_depth(run: _Run, folds: NDArray[np.int64]) -> Depth:
    """Rate by the first fold, depth by all; kept once found."""
    config = run.config
    if not config.num_folds:
        return Depth(config.learning_rates[0], 1.0, None, None, {})
    record = run.directory / RECORD
    kept = _kept_depth(record, run.mark)
    if kept is not None:
        return kept
    rates = config.learning_rates
    walks = len(rates) + config.num_folds - 1
    total = walks * run.steps_of(run.texts, config.max_passes * (1 - 1 / config.num_folds))
    with run.stages.stage("Finding the path's depth", "steps", total) as advance:
        first = {rate: _searched(run, folds, 0, rate, advance) for rate in rates}
        rate = deepest({rate: [curve] for rate, curve in first.items()}).learning_rate
        rest = [_searched(run, folds, fold, rate, advance) for fold in range(1, config.num_folds)]
    depth = deepest({rate: [first[rate], *rest]})
    curves = {**{f"{other:g}": [curve] for other, curve in first.items()}, **depth.curves}
    depth = Depth(depth.learning_rate, depth.share, depth.gain, depth.stderr, curves)
    if depth.share == 0:
        raise InputError(
            subject="validation text that was left out",
            must="gain from annealing on the rest",
            got=f"but at rates {', '.join(f'{rate:g}' for rate in rates)} it never did",
            do=f"pass smaller {option('learning_rates')}, or give more validation documents",
        )
    content = {"mark": run.mark, **depth.described}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="ascii")
    return depth


def _kept_depth(record: Path, mark: str) -> Depth | None:
    try:
        kept = json.loads(record.read_text(encoding="ascii"))
        if kept["mark"] != mark:
            return None
        curves = {rate: [[(s, v) for s, v in fold] for fold in folds] for rate, folds in kept["curves"].items()}
        return Depth(kept["learning_rate"], kept["share"], kept["left_out_gain"], kept["left_out_gain_stderr"], curves)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _searched(
    run: _Run, folds: NDArray[np.int64], fold: int, rate: float, advance: Callable[[int], object]
) -> list[tuple[float, float]]:
    """(share of the steps, loss of the left-out fold) along a walk on the other folds; kept once done."""
    rows, left_out = np.flatnonzero(folds != fold), run.texts.take(np.flatnonzero(folds == fold))
    num_steps = run.steps_of(run.texts.take(rows), run.config.max_passes)
    steps = _steps(run, rate, num_steps)
    visited_at = set(points(num_steps, _POINTS))
    losses: list[float] = []

    def visit(taken: int) -> float | None:
        if taken not in visited_at:
            return None
        nats, predicted = _losses(run, left_out)
        losses.append(float(nats.sum() / max(1.0, predicted.sum())))
        return losses[-1]

    curve_file = run.directory / f"search-{rate:g}-{fold}.json"
    mark = run.mark_of(rows, steps)
    try:
        kept = json.loads(curve_file.read_text(encoding="ascii"))
        if kept["mark"] == mark:
            advance(num_steps)
            return [(share, loss) for share, loss in kept["curve"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    run.return_to_start()
    visited = walk(
        run.model,
        _windows(run, rows, steps),
        steps,
        state_file=run.directory / "search.safetensors",
        mark=mark,
        moments=run.moments,
        visit=visit,
        until=lambda seen: has_turned([loss for _, loss in seen]),
        advance=advance,
    )
    curve = [(taken / num_steps, loss) for taken, loss in visited]
    with replacing(curve_file) as temporary:
        temporary.write_text(json.dumps({"mark": mark, "curve": curve}), encoding="ascii")
    return curve


def _walked(run: _Run, name: str, rows: NDArray[np.intp], depth: Depth) -> Path:
    """The weights at the end of a walk on these documents; walked where they are not there."""
    config = run.config
    num_steps = run.steps_of(run.texts.take(rows), depth.share * config.max_passes)
    steps = _steps(run, depth.learning_rate, num_steps)
    mark = run.mark_of(rows, steps)
    end = run.directory / f"end-{name}.safetensors"
    if kept_note(end, mark) is not None:
        return end
    with run.stages.stage(f"Walking the path ({name})", "steps", num_steps) as advance:
        run.return_to_start()
        state = run.directory / "walk.safetensors"
        walk(
            run.model,
            _windows(run, rows, steps),
            steps,
            state_file=state,
            mark=mark,
            moments=run.moments,
            advance=advance,
        )
        keep_weights(end, run.model, {"mark": mark})
        state.unlink(missing_ok=True)
    return end


def _steps(run: _Run, rate: float, num_steps: int) -> Steps:
    config = run.config
    return Steps(
        learning_rate=rate,
        num_steps=num_steps,
        stop=num_steps,
        batch_size=run.batch_size,
        schedule=config.schedule,
        warm_up_steps=int(config.warm_up * num_steps),
        weight_decay=config.weight_decay,
        beta1=config.beta1,
        beta2=config.beta2,
        clip=config.clip,
        checkpoint_steps=config.checkpoint_steps,
    )


def _windows(run: _Run, rows: NDArray[np.intp], steps: Steps) -> PackedWindows:
    return PackedWindows(
        [Part(run.texts.take(rows))],
        num_windows=steps.stop * steps.batch_size,
        window=run.window,
        separator=run.checkpoint.separator,
        seed=run.config.seed,
        predict_prompts=False,
    )


def _losses(run: _Run, texts: Texts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats and predicted tokens of these documents where the model stands."""
    tokens = BATCH_TOKENS[torch.device(run.config.device).type]
    return losses_of(run.model, texts.contents, texts.num_prompt, max_length=run.max_length, batch_tokens=tokens)


class _Scores:
    """Nats of the pool at points of the path, each in a store of its own.

    Args:
        run: whose model is moved to each point.
        pool: N documents.
        home: below it lie the stores.
        wanted: what the path depends on.
        rows_per_shard, replace: as for `descend`.
    """

    def __init__(
        self, run: _Run, pool: Corpus, home: str, wanted: Mapping[str, Any], rows_per_shard: int, replace: bool
    ) -> None:
        self._run, self._pool, self._home, self._wanted = run, pool, home, wanted
        self._rows_per_shard, self._replace = rows_per_shard, replace

    def at(self, name: str, weights: Path | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nats and predicted tokens of every document, (N,) each, with these weights, or at θ_s."""
        run, pool = self._run, self._pool
        # Losses at the start are the same whatever path begins there.
        own = ("version", "model", "max_length", "torch")
        fingerprint = {
            **{key: self._wanted[key] for key in (own if weights is None else self._wanted)},
            "pool": pool.fingerprint,
            "dtype": run.config.dtype,
            "point": name,
        }
        store = ColumnStore(
            f"{self._home}/{name}",
            num_samples=pool.num_samples,
            columns=COLUMNS,
            fingerprint=fingerprint,
            rows_per_shard=self._rows_per_shard,
            replace=self._replace,
        )
        missing = store.missing()
        label = "Losses at the start" if weights is None else f"Losses at the path's end ({name})"
        total = int(pool.num_tokens.sum())
        with run.stages.stage(label, "tokens", total, ("documents", pool.num_samples)) as advance:
            advance(total - sum(int(pool.num_tokens[_span(store.rows(shard))].sum()) for shard in missing))
            if missing:
                if weights is None:
                    run.return_to_start()
                else:
                    put_weights(weights, run.model)
                self._fill(store, missing, advance)
        columns = store.read()
        return columns["nats"], columns["predicted"]

    def _fill(self, store: ColumnStore, missing: Sequence[int], advance: Callable[[int], object]) -> None:
        run, pool = self._run, self._pool
        device = torch.device(run.config.device).type
        kept = store.kept("batches")
        tokens = BATCH_TOKENS[device] if kept is None else int(kept["tokens"])
        ids = pool.index["id"].combine_chunks()
        with torch.autocast(device, torch.bfloat16, enabled=run.config.dtype == "bfloat16"):
            for shard in missing:
                rows = store.rows(shard)
                contents, done = [pool.tokens(row) for row in rows], False
                while not done:
                    try:
                        nats, predicted = losses_of(
                            run.model,
                            contents,
                            pool.num_prompt[_span(rows)],
                            max_length=run.max_length,
                            batch_tokens=tokens,
                            advance=advance,
                        )
                        done = True
                    except OutOfMemoryError as error:
                        if tokens <= FEWEST_BATCH_TOKENS:
                            raise InputError(
                                subject="the model and one window",
                                must="fit into memory",
                                got=f"but {error} do not",
                                do=f"pass a smaller {option('max_length')}",
                            ) from error
                        tokens //= 2
                        store.keep("batches", {"tokens": tokens})
                store.write(shard, ids.slice(rows.start, len(rows)), {"nats": nats, "predicted": predicted})


def _score_by_others(
    run: _Run,
    pool: Corpus,
    shared: Mapping[int, Sequence[int]],
    folds: NDArray[np.int64],
    walked: Mapping[str, Path],
    end_loss: NDArray[np.float64],
) -> None:
    """Score documents that are in the validation set by the walks that left them out, into `end_loss`, in place."""
    if not run.config.num_folds:
        raise InputError(
            field="num_folds",
            must="be at least 2 where documents of the pool are also in the validation set",
            got=f"0, and {len(shared)} are",
            do="pass more folds, or take them out of one of the two",
        )
    for fold in range(run.config.num_folds):
        rows = [row for row, same in shared.items() if folds[same[0]] == fold]
        if not rows:
            continue
        put_weights(walked[f"fold-{fold}"], run.model)
        texts = Texts([""] * len(rows), [pool.tokens(row) for row in rows], pool.num_prompt[rows])
        nats, predicted = _losses(run, texts)
        with np.errstate(invalid="ignore", divide="ignore"):
            end_loss[rows] = nats / predicted


def _span(rows: range) -> slice:
    return slice(rows.start, rows.stop)
