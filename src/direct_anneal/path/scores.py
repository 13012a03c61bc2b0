"""Losses of the pool at points of the path, each in a store of its own.

N documents of the pool, n of one shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features.columns import ColumnStore
from direct_anneal.path.documents import Texts
from direct_anneal.path.scoring import BATCH_TOKENS, FEWEST_BATCH_TOKENS, OutOfMemoryError, losses_of
from direct_anneal.path.walk import put_weights
from direct_anneal.path.walks import Walks, losses_at

COLUMNS = ("nats", "predicted")


class Scores:
    """Nats of the pool at points of the path, each in a store of its own.

    Args:
        run: whose model is moved to each point.
        pool: N documents.
        home: below it lie the stores.
        wanted: what the path depends on.
        rows_per_shard, replace: as for `descend`.
    """

    def __init__(
        self, run: Walks, pool: Corpus, home: str, wanted: Mapping[str, Any], rows_per_shard: int, replace: bool
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


def score_by_others(
    run: Walks,
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
        nats, predicted = losses_at(run, texts)
        with np.errstate(invalid="ignore", divide="ignore"):
            end_loss[rows] = nats / predicted


def _span(rows: range) -> slice:
    return slice(rows.start, rows.stop)
