"""Losses of the pool at points of the path, each in a store of its own.

N documents of the pool, n of one shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features.columns import ColumnStore
from direct_anneal.path.damage import HEAD_TOKENS, shuffled
from direct_anneal.path.documents import Texts, Tokens
from direct_anneal.path.scoring import BATCH_TOKENS, FEWEST_BATCH_TOKENS, OutOfMemoryError, Sums, losses_of
from direct_anneal.path.walk import put_weights
from direct_anneal.path.walks import Walks, losses_at

COLUMNS = ("nats", "predicted", "head")
_MIXED = "shuffled"


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

    def at(self, name: str, weights: Path | None) -> Sums:
        """Losses of every document with these weights, or at θ_s."""
        return self._passed(name, weights, None)

    def mixed(self, starts: NDArray[np.bool_]) -> Sums:
        """Losses at θ_s of every document's beginning, its words in random order.

        Args:
            starts: which tokens begin a word, (V,).
        """
        return self._passed(_MIXED, None, starts)

    def _passed(self, name: str, weights: Path | None, starts: NDArray[np.bool_] | None) -> Sums:
        run, pool = self._run, self._pool
        # Losses at the start are the same whatever path begins there.
        own = ("version", "model", "max_length", "torch")
        fingerprint = {
            **{key: self._wanted[key] for key in (own if weights is None else self._wanted)},
            "pool": pool.fingerprint,
            "dtype": run.config.dtype,
            "point": name,
            "words": None if starts is None else hashlib.sha256(np.packbits(starts).tobytes()).hexdigest(),
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
        lengths = pool.num_tokens
        if starts is not None:
            label, lengths = "Losses of shuffled words", np.minimum(lengths, HEAD_TOKENS)
        total = int(lengths.sum())
        with run.stages.stage(label, "tokens", total, ("documents", pool.num_samples)) as advance:
            advance(total - sum(int(lengths[_span(store.rows(shard))].sum()) for shard in missing))
            if missing:
                if weights is None:
                    run.return_to_start()
                else:
                    put_weights(weights, run.model)
                self._fill(store, missing, starts, advance)
        return Sums(**store.read())

    def _documents(self, rows: range, starts: NDArray[np.bool_] | None) -> tuple[list[Tokens], NDArray[np.int64]]:
        """Contents and prompts of a shard's documents; with `starts` their shuffled beginnings."""
        contents = [self._pool.tokens(row) for row in rows]
        prompts = self._pool.num_prompt[_span(rows)]
        if starts is None:
            return contents, prompts
        names: list[str] = self._pool.index["id"][rows.start : rows.stop].to_pylist()
        heads = [shuffled(tokens[:HEAD_TOKENS], starts, name) for tokens, name in zip(contents, names, strict=True)]
        return heads, np.zeros_like(prompts)

    def _fill(
        self,
        store: ColumnStore,
        missing: Sequence[int],
        starts: NDArray[np.bool_] | None,
        advance: Callable[[int], object],
    ) -> None:
        run, pool = self._run, self._pool
        device = torch.device(run.config.device).type
        kept = store.kept("batches")
        tokens = BATCH_TOKENS[device] if kept is None else int(kept["tokens"])
        ids = pool.index["id"].combine_chunks()
        with torch.autocast(device, torch.bfloat16, enabled=run.config.dtype == "bfloat16"):
            for shard in missing:
                rows = store.rows(shard)
                (contents, prompts), found = self._documents(rows, starts), None
                while found is None:
                    try:
                        found = losses_of(
                            run.model,
                            contents,
                            prompts,
                            max_length=run.max_length,
                            batch_tokens=tokens,
                            advance=advance,
                        )
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
                store.write(shard, ids.slice(rows.start, len(rows)), asdict(found))


def score_by_others(
    run: Walks,
    pool: Corpus,
    shared: Mapping[int, Sequence[int]],
    folds: NDArray[np.int64],
    walked: Mapping[int, Path | None],
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
        end = walked[fold]
        assert end is not None, "where documents are shared every fold is walked"
        put_weights(end, run.model)
        texts = Texts([""] * len(rows), [pool.tokens(row) for row in rows], pool.num_prompt[rows])
        end_loss[rows] = losses_at(run, texts).means


def _span(rows: range) -> slice:
    return slice(rows.start, rows.stop)
