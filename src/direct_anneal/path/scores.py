"""Losses of the pool at points of the path, each in a store of its own.

N documents of the pool, n of one shard, k directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features.columns import ColumnStore
from direct_anneal.features.storage import place_at
from direct_anneal.io.digests import sha256
from direct_anneal.path.damage import HEAD_TOKENS
from direct_anneal.path.order import Order, most_tokens
from direct_anneal.path.rounded import round_weights
from direct_anneal.path.scorer import Elsewhere, Found, Point, Scorer, Shard, slope_name
from direct_anneal.path.scoring import BATCH_TOKENS, FEWEST_BATCH_TOKENS, Sums, losses_of
from direct_anneal.path.walk import put_tensors, put_weights
from direct_anneal.path.walks import DIRECTIONS, Walks
from direct_anneal.progress import Work

COLUMNS = ("nats", "predicted", "head", "opening")
_START, _ORDER, _SLOPES = "start", "order", "slopes"


@dataclass(frozen=True)
class _Reading:
    """Means to read the order of documents.

    Attributes:
        starts: which tokens begin a word, (V,).
        start: losses at θ_s; None where they are not computed here.
    """

    starts: NDArray[np.bool_]
    start: ColumnStore | None


class Scores:
    """Nats of the pool at points of the path, each in a store of its own.

    A context: at its end, what was sent to workers is removed.

    Args:
        run: whose model is moved to each point.
        pool: N documents.
        home: below it lie the stores.
        made_of: what the path depends on.
        rows_per_shard, replace, elsewhere: as for `descend`.
        wanted: whether a shard is computed here.
    """

    def __init__(
        self,
        run: Walks,
        pool: Corpus,
        home: str,
        made_of: Mapping[str, Any],
        rows_per_shard: int,
        replace: bool,
        elsewhere: Elsewhere | None = None,
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._is_wanted = wanted
        self._run, self._pool, self._home, self._made_of = run, pool, home, made_of
        self._rows_per_shard, self._replace, self._elsewhere = rows_per_shard, replace, elsewhere
        self._sent: set[str] = set()
        self._start: ColumnStore | None = None
        # Tokens of each document whose order is looked at. Of a second window the model has not seen what is before it.
        heads = np.minimum(pool.num_tokens, min(HEAD_TOKENS, run.max_length))
        self._heads: NDArray[np.int64] = np.where(pool.num_prompt > 0, 0, heads)

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._sent:
            place_at(self._home).remove(name)
        self._sent.clear()

    def at(self, name: str, weights: Path | None) -> Sums:
        """Compute the losses of every document with these weights, or at θ_s."""
        return Sums(**self.keep(name, weights).read())

    def keep(self, name: str, weights: Path | None) -> ColumnStore:
        """Compute what `at` reads, of the wanted shards."""
        label = "Losses of the pool at the start" if weights is None else f"Losses of the pool at the end ({name})"
        return self._passed(name, label, COLUMNS, weights=weights)

    def start(self, known: NDArray[np.float64] | None) -> Sums:
        """Compute the losses at θ_s of every document, or complete what is known of them.

        Args:
            known: mean nats a token, (N,); NaN where they are not known.
        """
        if known is None:
            return Sums(**self.keep_start().read())
        run, pool = self._run, self._pool
        predicted = predicted_tokens(pool.num_tokens, pool.num_prompt, run.max_length)
        nats = np.where(predicted > 0, known * predicted, 0.0)
        if lacking := np.flatnonzero(np.isnan(nats)).tolist():
            run.return_to_start()
            nats[lacking] = _scored_here(run, run.model, pool, lacking).nats
        unknown = np.full(len(nats), np.nan)
        return Sums(nats, predicted, unknown, unknown)

    def keep_start(self) -> ColumnStore:
        """Compute the losses at θ_s of the wanted shards, once."""
        if self._start is None:
            self._start = self.keep(_START, None)
        return self._start

    def order(self, starts: NDArray[np.bool_], knows_start: bool) -> NDArray[np.float64]:
        """Compute every document's sign of order at θ_s, (N,); NaN where it cannot be told.

        Args:
            starts: which tokens begin a word, (V,).
            knows_start: losses at θ_s are not computed here, and the texts' own are read for this alone.
        """
        return self.keep_order(starts, knows_start).read()["order"]

    def keep_order(self, starts: NDArray[np.bool_], knows_start: bool) -> ColumnStore:
        """Compute what `order` reads, of the wanted shards."""
        start = None if knows_start else self.keep_start()
        return self._passed(_ORDER, "Losses of shuffled words", ("order",), order=_Reading(starts, start))

    def slopes(self, count: int) -> NDArray[np.float64]:
        """Compute the slopes of every document's loss at θ_s along the run's stiff directions, (N, k).

        Args:
            count: k.
        """
        found = self.keep_slopes(count).read()
        return np.column_stack([found[slope_name(place)] for place in range(count)])

    def keep_slopes(self, count: int) -> ColumnStore:
        """Compute what `slopes` reads, of the wanted shards."""
        columns = tuple(slope_name(place) for place in range(count))
        directions = self._run.directory / DIRECTIONS
        return self._passed(_SLOPES, "Slopes in stiff directions", columns, directions=directions)

    def _passed(
        self,
        name: str,
        label: str,
        columns: tuple[str, ...],
        *,
        weights: Path | None = None,
        directions: Path | None = None,
        order: _Reading | None = None,
    ) -> ColumnStore:
        """Compute the wanted shards that are missing."""
        run, pool = self._run, self._pool
        # Losses at the start are the same whatever path begins there; stiff directions are the validation set's.
        own = ("version", "model", "max_length", "torch")
        fingerprint = {
            **{key: self._made_of[key] for key in (own if weights is None and directions is None else self._made_of)},
            "pool": pool.fingerprint,
            "dtype": run.config.dtype,
            "weights": run.config.scored_weights,
            "point": name,
            "words": None if order is None else sha256(np.packbits(order.starts).tobytes()),
        }
        store = ColumnStore(
            f"{self._home}/{name}",
            num_samples=pool.num_samples,
            columns=columns,
            fingerprint=fingerprint,
            rows_per_shard=self._rows_per_shard,
            replace=self._replace,
        )
        missing = [shard for shard in store.missing() if self._is_wanted(shard)]
        lengths = pool.num_tokens
        if order is not None:
            lengths = most_tokens(self._heads, order.start is not None)
        total = int(lengths.sum())
        share = total / max(1, int(pool.num_tokens.sum()))
        forward, backward = (share, 0.0) if directions is None else (0.0, share)
        work = Work(role="pool", unit="tokens", forward=forward, gradients=backward)
        with run.stages.stage(label, "tokens", total, ("documents", pool.num_samples), work) as advance:
            advance(total - sum(int(lengths[_span(store.rows(shard))].sum()) for shard in missing))
            if missing:
                self._fill(store, missing, self._point(weights, directions), order, advance)
        return store

    def _point(self, weights: Path | None, directions: Path | None) -> Point:
        """Return a point whose files the computer can read: here below the run, elsewhere beside the losses."""
        files = [path for path in (weights, directions) if path is not None]
        if self._elsewhere is None:
            place = str(self._run.directory)
        else:
            there = place_at(self._home)
            place = str(there)
            for path in files:
                if path.name not in self._sent:
                    there.write(path.name, path.read_bytes())
                    self._sent.add(path.name)
        return Point(
            place=place,
            weights=None if weights is None else weights.name,
            directions=None if directions is None else directions.name,
        )

    def _order(self, shard: int, rows: range, reading: _Reading) -> Order:
        """Read the beginnings of a shard's documents."""
        lengths = self._heads[_span(rows)].tolist()
        unknown = np.full(len(rows), np.nan)
        known = {"opening": unknown, "head": unknown} if reading.start is None else reading.start.read(shard)
        return Order(
            heads=[self._pool.tokens(row)[:length] for row, length in zip(rows, lengths, strict=True)],
            names=self._pool.index["id"][rows.start : rows.stop].to_pylist(),
            starts=reading.starts,
            opening_nats=known["opening"],
            head_nats=known["head"],
        )

    def _fill(
        self,
        store: ColumnStore,
        missing: Sequence[int],
        point: Point,
        reading: _Reading | None,
        advance: Callable[[int], object],
    ) -> None:
        """Compute shards and write them, in order; what does not fit into memory once more, in smaller batches."""
        kept = store.kept("batches")
        tokens = BATCH_TOKENS[torch.device(self._run.config.device).type] if kept is None else int(kept["tokens"])
        ids, waiting = self._pool.index["id"].combine_chunks(), [*missing]
        given: dict[int, Shard] = {}

        def shards() -> Iterator[Shard]:
            for shard in waiting:
                rows = store.rows(shard)
                if reading is None:
                    contents, prompts = [self._pool.tokens(row) for row in rows], self._pool.num_prompt[_span(rows)]
                    given[shard] = Shard(point=point, contents=contents, num_prompt=prompts, batch_tokens=tokens)
                else:
                    given[shard] = Shard(
                        point=point,
                        contents=[],
                        num_prompt=np.zeros(0, dtype=np.int64),
                        batch_tokens=tokens,
                        order=self._order(shard, rows, reading),
                    )
                yield given[shard]

        while waiting:
            again = []
            for shard, found in zip(waiting, self._computed(shards(), advance), strict=True):
                made, rows = given.pop(shard), store.rows(shard)
                if found is not None:
                    store.write(shard, ids.slice(rows.start, len(rows)), found)
                    if self._elsewhere is not None:
                        advance(made.num_tokens)
                    continue
                again.append(shard)
                if made.batch_tokens <= FEWEST_BATCH_TOKENS:
                    raise InputError(
                        subject="the model and one window",
                        must="fit into memory",
                        got=f"but they do not, nor {made.batch_tokens} tokens at once",
                        do=f"pass a smaller {option('max_length')}",
                    )
                if made.batch_tokens == tokens:  # and was not halved for another shard in the meantime
                    tokens //= 2
                    store.keep("batches", {"tokens": tokens})
            waiting = again

    def _computed(self, shards: Iterator[Shard], advance: Callable[[int], object]) -> Iterator[Found | None]:
        run = self._run
        if self._elsewhere is not None:
            return self._elsewhere(shards)
        model = scoring_model(run)
        scorer = Scorer(
            model,
            return_to_start=lambda: put_tensors(run.start.__getitem__, model),
            max_length=run.max_length,
            dtype=run.config.dtype,
            advance=advance,
        )
        return map(scorer, shards)


def score_by_others(
    run: Walks,
    pool: Corpus,
    shared: Mapping[int, Sequence[int]],
    folds: NDArray[np.int64],
    walked: Mapping[int, Path | None],
    end_loss: NDArray[np.float64],
) -> None:
    """Score documents that are in the validation set by the walks that left them out, into `end_loss`, in place."""
    model = scoring_model(run)
    for fold in range(run.config.num_folds):
        rows = [row for row, same in shared.items() if folds[same[0]] == fold]
        if not rows:
            continue
        end = walked[fold]
        assert end is not None, "where documents are shared every fold is walked"
        put_weights(end, model)
        end_loss[rows] = _scored_here(run, model, pool, rows).means


def _scored_here(run: Walks, model: nn.Module, pool: Corpus, rows: Sequence[int]) -> Sums:
    """Compute the losses of some documents of the pool in this process."""
    device = torch.device(run.config.device).type
    with torch.autocast(device, torch.bfloat16, enabled=run.config.dtype == "bfloat16"):  # as all others
        return losses_of(
            model,
            [pool.tokens(row) for row in rows],
            pool.num_prompt[rows],
            max_length=run.max_length,
            batch_tokens=BATCH_TOKENS[device],
        )


def predicted_tokens(
    num_tokens: NDArray[np.int64], num_prompt: NDArray[np.int64], max_length: int
) -> NDArray[np.float64]:
    """Count the predicted tokens of each document, (N,): those after its prompt that begin no window."""
    windows = -(-num_tokens // max_length) - -(-np.minimum(num_prompt, num_tokens) // max_length)
    predicted: NDArray[np.float64] = np.maximum(0, num_tokens - num_prompt - windows).astype(np.float64)
    return predicted


def scoring_model(run: Walks) -> nn.Module:
    """Return the run's model, to be moved; with rounded weights a copy of it."""
    return run.model if run.config.scored_weights == "float" else round_weights(copy.deepcopy(run.model))


def _span(rows: range) -> slice:
    return slice(rows.start, rows.stop)
