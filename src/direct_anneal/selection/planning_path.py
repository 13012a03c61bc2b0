"""The cost of a descent path, estimated from a few of its steps and the losses of some documents.

N samples of the pool, k folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from direct_anneal.data import Part
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig
from direct_anneal.path.damage import HEAD_TOKENS, common_shares, repeated_share
from direct_anneal.path.depth import Depth
from direct_anneal.path.documents import Texts
from direct_anneal.path.walks import POINTS, Walks, losses_at, walked
from direct_anneal.progress import Silent
from direct_anneal.selection.flops import flops

_STEPS = 3  # that are timed
_SCORED = 64  # documents of the pool whose losses are timed

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class PathPlan:
    """An upper bound on the cost of a path: walks end early where left-out text gains no more.

    Attributes:
        seconds: by stage, as `select` names them.
        flops: of all walks and of all losses.
        weights: bytes of weights and states below the run.
        columns: bytes a document of the pool in the columns of losses.
        names: of the paths.
    """

    seconds: dict[str, float]
    flops: float
    weights: int
    columns: int
    names: tuple[str, ...]


def planned_path(
    config: PathConfig, checkpoint: Checkpoint, parts: dict[str, Part], window: int, work: Path, clock: Clock
) -> PathPlan:
    """Time a few steps of a walk, and the losses of some documents.

    Walks grow with the validation set, losses with the pool. Of what was not read, each token counts as those that
    were.

    Args:
        parts: of "pool" and "validation".
        window: T, tokens of a window.
        work: a directory for weights and states.
        clock: seconds.
    """
    pool, validation = parts["pool"], parts["validation"]
    work.mkdir()
    model = checkpoint.load_model(config.device, "float32")
    texts = Texts.of(validation.corpus)
    start = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    run = Walks(config, checkpoint, model, start, None, texts, window, work, "plan", Silent())
    share = min(1.0, _STEPS / run.steps_of(texts, config.max_passes))
    began = clock()
    steps = run.steps_of(texts, share * config.max_passes)
    walked(run, "plan", np.arange(texts.num_samples), Depth(config.learning_rates[0], share, None, None, {}))
    training = (clock() - began) / (steps * run.batch_size * run.window)  # seconds a token, as those below

    lengths = pool.corpus.num_tokens
    order = np.argsort(lengths, kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, _SCORED).astype(int))]
    some = Texts([""] * len(rows), [pool.corpus.tokens(row) for row in rows.tolist()], pool.corpus.num_prompt[rows])
    began = clock()
    losses_at(run, some)
    scoring = (clock() - began) / int(some.num_tokens.sum())
    began = clock()
    for tokens in some.contents:
        repeated_share(tokens)
    repeated = (clock() - began) / len(rows)
    began = clock()
    common_shares(pool.corpus, lambda _: None)
    repeated += (clock() - began) / pool.corpus.num_samples

    names: tuple[str, ...] = ("validation",)
    if config.paths == "domains":
        names = tuple(sorted(set(map(str, validation.corpus.index["domain"].to_pylist()))))
    ends = config.num_folds if config.scored_ends == "folds" else 1
    searches = len(config.learning_rates) + config.num_folds - 1 if config.num_folds else 0
    left = 1 / config.num_folds if config.num_folds else 0.0
    walks = 1.0 if config.scored_ends == "whole" else config.num_folds * (1 - left)
    trained = validation.num_tokens * config.max_passes
    heads = int(np.minimum(lengths, HEAD_TOKENS).sum()) / int(lengths.sum()) if checkpoint.has_tokenizer else 0.0
    one = walks == 1 and len(names) == 1
    seconds = {
        "Finding the path's depth": searches
        * (trained * (1 - left) * training + POINTS * left * validation.num_tokens * scoring),
        "Walking the path (whole)" if one else "Walking the paths": walks * trained * training,
        "Losses at the start": pool.num_tokens * scoring,
        "Repetition": pool.num_samples * repeated,
        "Losses of shuffled words": heads * pool.num_tokens * scoring,
        "Losses at the path's end (whole)" if one else "Losses at the paths' ends": ends
        * len(names)
        * pool.num_tokens
        * scoring,
    }
    forward = {role: flops(part, model, window, matrix=2.0, attention=2.0) for role, part in parts.items()}
    passes = searches * (1 - left) + walks
    model_bytes = 4 * sum(p.numel() for p in model.parameters())
    return PathPlan(
        seconds={stage: took for stage, took in seconds.items() if took},
        flops=(1 + heads + ends * len(names)) * forward["pool"]
        + (3 * passes * config.max_passes + searches * POINTS * left) * forward["validation"],
        weights=(ends * len(names) + 3) * model_bytes,
        columns=8 * (3 * (2 + ends * len(names)) + 5 + len(names)),
        names=names,
    )
