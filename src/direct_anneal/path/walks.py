"""Everything that all walks of one run share, the search for their depth, and the walks that the pool is scored at.

M documents of the validation set, k folds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.errors import InputError, option
from direct_anneal.io.digests import sha256
from direct_anneal.io.records import read_sealed, write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path.config import PathConfig
from direct_anneal.path.depth import Depth, deepest, has_turned, known_curve, plain_curve, points
from direct_anneal.path.documents import Texts
from direct_anneal.path.scoring import BATCH_TOKENS, Sums, losses_of
from direct_anneal.path.stiff import OffStiff, keep_directions, kept_directions, off_stiff
from direct_anneal.path.walk import Steps, keep_weights, kept_note, walk
from direct_anneal.progress import Progress, Work
from direct_anneal.train.packing import PackedWindows, Part

RECORD = "path.json"
DIRECTIONS = "stiff.safetensors"
_SEARCH = "search.safetensors"  # state of the search's walk under way

_WINDOW = 512
_STEPS_A_PASS = 32
_MOST_STEP_TOKENS = 16384
POINTS = 12  # of a walk, at which the left-out loss is taken

Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]


@dataclass(frozen=True)
class Walks:
    """All walks of one run.

    Attributes:
        config, checkpoint: the run's.
        model: moved to wherever the walk under way stands.
        start: θ_s, by parameter name, on the CPU.
        moments: of Adam at θ_s; zeros where None.
        texts: the validation set.
        shared: documents of the pool that are in it, by position, with their positions there.
        replay: documents of the pool that stand among it, in the order in which they are needed; None without replay.
        max_length: tokens of a window where losses are taken.
        directory: where states, ends and what the search found are kept.
        mark: a hash of all that the walks depend on, but for whose documents they see.
        stages: where progress is shown.
    """

    config: PathConfig
    checkpoint: Checkpoint
    model: nn.Module
    start: Mapping[str, torch.Tensor]
    moments: Moments | None
    texts: Texts
    shared: Mapping[int, Sequence[int]]
    replay: Texts | None
    max_length: int
    directory: Path
    mark: str
    stages: Progress

    @property
    def state_bytes(self) -> int:
        """The state of a walk: weights and two moments in float32."""
        return 3 * 4 * sum(p.numel() for p in self.model.parameters())

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
        """Count the steps of so many passes over these documents."""
        return max(1, round(passes * int(texts.num_tokens.sum()) / (self.batch_size * self.window)))

    def replay_steps_of(self, num_steps: int) -> int:
        """Count the steps that replay adds to so many; 0 without replay."""
        share = self.config.walk_replay
        return max(1, round(num_steps * share / (1 - share))) if share else 0

    def mark_of(
        self, rows: NDArray[np.intp], steps: Steps, *, kind: Literal["plain", "restrained", "replay"] = "plain"
    ) -> str:
        """Return a hash of all that one walk depends on."""
        content = [self.mark, rows.tolist(), {**asdict(steps), "checkpoint_steps": None}, kind]
        return sha256(json.dumps(content, sort_keys=True))

    @cached_property
    def restraint(self) -> OffStiff | None:
        """The stiff directions that steps of a restrained walk are kept off, found at θ_s; kept once found."""
        count, share = self.config.num_restrained, self.config.stiff_share
        if not count:
            return None
        kept = kept_directions(self.directory / DIRECTIONS, self.mark, share)
        if kept is None:
            self.return_to_start()
            work = Work(role="validation", unit="tokens")
            with self.stages.stage("Stiff directions of the path", "products", work=work) as advance:
                try:
                    kept = off_stiff(
                        self.model,
                        self.texts,
                        count,
                        max_length=self.max_length,
                        seed=self.config.seed,
                        share=share,
                        advance=advance,
                    )
                except ValueError as error:
                    raise InputError(
                        field="num_restrained", must="find stiff directions", got=f"but {error}", do="pass 0"
                    ) from error
            keep_directions(self.directory / DIRECTIONS, kept, self.mark)
        device = next(self.model.parameters()).device
        # Laid out anew: products round by strides and by where memory begins, and found or read these are not the same.
        directions = kept.directions.to(device).clone(memory_format=torch.contiguous_format)
        return OffStiff(kept.eigenvalues, directions, share)

    def return_to_start(self) -> None:
        """Put the model back to θ_s."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.start[name])


def folds_of(run: Walks) -> NDArray[np.int64]:
    """Return the fold of each validation document, (M,)."""
    if run.shared and not run.config.num_folds:
        raise InputError(
            field="num_folds",
            must="be at least 2 where documents of the pool are also in the validation set",
            got=f"0, and {len(run.shared)} are",
            do="pass more folds, or take them out of one of the two",
        )
    folds = run.texts.of_folds(max(1, run.config.num_folds))
    if run.config.num_folds and len(np.unique(folds)) < run.config.num_folds:
        raise InputError(
            subject="the validation set",
            must=f"hold at least {run.config.num_folds} different documents, one for each of {option('num_folds')}",
            got=f"but it holds {len(np.unique(folds))}",
            do="give more, or fewer folds",
        )
    return folds


def found_depth(run: Walks, folds: NDArray[np.int64]) -> Depth:
    """Rate by the first fold, depth by all; kept once found. Walks of the search have no replay."""
    config = run.config
    if not config.num_folds:
        return Depth(config.learning_rates[0], 1.0, None, None, {})
    record = run.directory / RECORD
    kept = _kept_depth(record, run.mark)
    if kept is not None:
        return kept
    rates = config.learning_rates
    walks = len(rates) + config.num_folds - 1
    passes = config.max_passes * (1 - 1 / config.num_folds)
    total = walks * run.steps_of(run.texts, passes)
    work = Work(
        role="validation",
        unit="tokens",
        forward=walks * POINTS / config.num_folds,
        training=walks * passes,
        disk=run.state_bytes,
    )
    with run.stages.stage("Finding the path's depth", "steps", total, work=work) as advance:
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
    write_record(record, content)
    (run.directory / _SEARCH).unlink(missing_ok=True)
    return depth


def _kept_depth(record: Path, mark: str) -> Depth | None:
    try:
        kept = read_sealed(record)
        if kept["mark"] != mark:
            return None
        curves = {rate: [known_curve(fold) for fold in folds] for rate, folds in kept["curves"].items()}
        return Depth(kept["learning_rate"], kept["share"], kept["left_out_gain"], kept["left_out_gain_stderr"], curves)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _searched(
    run: Walks, folds: NDArray[np.int64], fold: int, rate: float, advance: Callable[[int], object]
) -> list[tuple[float, float]]:
    """Return (share of the steps, loss of the left-out fold) along a walk on the other folds; kept once done."""
    rows, left_out = np.flatnonzero(folds != fold), run.texts.take(np.flatnonzero(folds == fold))
    num_steps = run.steps_of(run.texts.take(rows), run.config.max_passes)
    steps = _steps(run, rate, num_steps)
    visited_at = set(points(num_steps, POINTS))

    def visit(taken: int) -> float | None:
        if taken not in visited_at:
            return None
        found = losses_at(run, left_out)
        return float(found.nats.sum() / max(1.0, found.predicted.sum()))

    curve_file = run.directory / f"search-{rate:g}-{fold}.json"
    mark = run.mark_of(rows, steps)
    try:
        kept = read_sealed(curve_file)
        if kept["mark"] == mark:
            advance(num_steps)
            return known_curve(kept["curve"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    run.return_to_start()
    visited = walk(
        run.model,
        _packed(run, [Part(run.texts.take(rows))], steps),
        steps,
        state_file=run.directory / _SEARCH,
        mark=mark,
        moments=run.moments,
        visit=visit,
        until=lambda seen: has_turned([loss for _, loss in seen]),
        may_diverge=True,
        advance=advance,
    )
    curve = [(taken / num_steps, loss) for taken, loss in visited]
    write_record(curve_file, {"mark": mark, "curve": plain_curve(curve)})
    return curve


def walked(run: Walks, name: str, rows: NDArray[np.intp], depth: Depth, *, restraint: OffStiff | None = None) -> Path:
    """Walk on these documents, and return the weights at the end; the kept ones where they are there.

    Args:
        restraint: of its steps; its walk needs a name of its own.
    """
    steps = _steps(run, depth.learning_rate, sum(steps_of_walk(run, rows, depth)))
    mark = run.mark_of(rows, steps, kind="plain" if restraint is None else "restrained")
    return _walked(run, name, _with_replay(run, rows, steps), steps, mark, restraint)


def replayed(run: Walks, name: str, rows: NDArray[np.intp], depth: Depth) -> Path:
    """Walk on the replay alone of the walk on these documents, and return the weights at the end, as `walked` does.

    It sees the documents of the pool that the other walk sees, at the same rates. So what both have made of them
    cancels in the difference of their losses.
    """
    on_target, on_replay = steps_of_walk(run, rows, depth)
    both = _with_replay(run, rows, _steps(run, depth.learning_rate, on_target + on_replay))
    assert run.replay is not None
    steps = _steps(run, depth.learning_rate, on_replay)
    seen = both.seen(1)
    rest = seen if len(seen) else np.zeros(1, dtype=np.int64)  # the shortest walks may see none
    windows = _packed(run, [Part(run.replay.take(rest))], steps)
    return _walked(run, name, windows, steps, run.mark_of(rows, steps, kind="replay"))


def steps_of_walk(run: Walks, rows: NDArray[np.intp], depth: Depth) -> tuple[int, int]:
    """Count the steps of a walk: on these documents, and on replay."""
    on_target = run.steps_of(run.texts.take(rows), depth.share * run.config.max_passes)
    return on_target, run.replay_steps_of(on_target)


def _walked(
    run: Walks, name: str, windows: PackedWindows, steps: Steps, mark: str, restraint: OffStiff | None = None
) -> Path:
    end = run.directory / f"end-{name}.safetensors"
    if kept_note(end, mark) is not None:
        return end
    passes = len(windows) * run.window / int(run.texts.num_tokens.sum())
    work = Work(role="validation", unit="tokens", training=passes, disk=run.state_bytes)
    with run.stages.stage(f"Walking the path ({name})", "steps", steps.num_steps, work=work) as advance:
        run.return_to_start()
        state = run.directory / "walk.safetensors"
        walk(
            run.model,
            windows,
            steps,
            state_file=state,
            mark=mark,
            moments=run.moments,
            restraint=restraint,
            advance=advance,
        )
        keep_weights(end, run.model, {"mark": mark})
        state.unlink(missing_ok=True)
    return end


def _steps(run: Walks, rate: float, num_steps: int) -> Steps:
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


def _with_replay(run: Walks, rows: NDArray[np.intp], steps: Steps) -> PackedWindows:
    """Pack these documents, and the replay among them."""
    replay = [] if run.replay is None else [Part(run.replay, run.config.walk_replay)]
    return _packed(run, [Part(run.texts.take(rows)), *replay], steps)


def _packed(run: Walks, parts: Sequence[Part], steps: Steps) -> PackedWindows:
    return PackedWindows(
        parts,
        num_windows=steps.stop * steps.batch_size,
        window=run.window,
        separator=run.checkpoint.separator,
        seed=run.config.seed,
        predict_prompts=False,
    )


def losses_at(run: Walks, texts: Texts) -> Sums:
    """Compute the losses of these documents where the model stands."""
    tokens = BATCH_TOKENS[torch.device(run.config.device).type]
    return losses_of(run.model, texts.contents, texts.num_prompt, max_length=run.max_length, batch_tokens=tokens)
