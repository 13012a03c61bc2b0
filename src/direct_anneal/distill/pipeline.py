"""`distil`, top to bottom: from a finished run to a scorer that needs no model."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.distil import CountedUnit as Unit
from direct_anneal.config.distil import DistilConfig
from direct_anneal.data import texts
from direct_anneal.distill.card import held_out
from direct_anneal.distill.fit import FOLDS, Hashed, fit, folds_of, frequencies, normal_scores
from direct_anneal.distill.hashing import tokens, words
from direct_anneal.distill.scorer import Scorer, joined, write_scorer
from direct_anneal.errors import InputError
from direct_anneal.io.lock import claim
from direct_anneal.io.threads import one_blas_thread
from direct_anneal.progress import Advance, Progress, Silent
from direct_anneal.run.layout import EVIDENCE
from direct_anneal.run.run_dir import RunDir

LEAST_DOCUMENTS = 10 * FOLDS
ORDER, MEMBERSHIP = "rank", "selected"

_BLOCK_BYTES = 2**20
_PART = 256  # documents
_LARGEST = 2**31 - 1  # of a weight


@one_blas_thread()
def distil(config: DistilConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Fit a linear model on hashed n-grams to what a run found, and write it with a card of what it keeps.

    Returns:
        the card, as scorer.json has it.

    Raises:
        InputError: the run is not finished, has no such column, or too few documents; the directory is another's.

    Cost: one read of the pool and FOLDS fits, seconds for ten thousand documents; memory 12 bytes for each different
    n-gram of a document.
    """
    shown, run, out = progress or Silent(), Path(config.run), Path(config.out)
    opened = RunDir.open(run, trust_remote_code=config.trust_remote_code)
    pool = opened.corpus("pool")
    positions, order, selected = _target(opened, config.target)
    made_of = {"run": str(run.resolve()), "target": config.target, "bits": config.bits, "unit": config.unit}
    with claim(out, {**made_of, "pool": pool.fingerprint}, "scorer.json", "unit", overwrite=config.overwrite):
        with shown.stage("Reading the pool", "documents", len(positions)) as advance:
            hashed, sizes = _hashed(opened, positions, config.unit, advance)
            shares = frequencies(hashed, config.bits)
        counts = np.concatenate([np.diff(bounds) for _, bounds in hashed])
        usable = np.flatnonzero(counts > 0)
        ids = pool.index["id"].take(pa.array(positions[usable])).to_pylist()
        usable = usable[np.argsort(np.array(ids, dtype=object), kind="stable")]  # the pool's order must not matter
        folds = folds_of(sorted(ids))
        if len(usable) < LEAST_DOCUMENTS or len(np.unique(folds)) < FOLDS:
            raise InputError(
                subject=str(run),
                must=f"have at least {LEAST_DOCUMENTS} scored documents with a word in them",
                got=len(usable),
                do="distil a run over a larger pool",
            )
        order, selected = order[usable], selected[usable]
        target = order if config.target == MEMBERSHIP else normal_scores(order)
        with shown.stage("Fitting", "fits", 2 * FOLDS + 1) as advance:
            fitted = fit(shares[usable], counts[usable], target, folds, advance)
        kept = held_out(fitted.predicted, target, order, selected, folds)
        num_tokens = pool.num_tokens[positions[usable]]
        card: dict[str, Any] = {
            "target": config.target,
            "target_unit": "1 selected, 0 not" if config.target == MEMBERSHIP else "normal quantile of the rank",
            "distilled_with": version("direct-anneal"),
            "pool_fingerprint": pool.fingerprint,
            "documents": len(usable),
            "share_selected": float(selected.mean()),
            "tokens_per_size": float(num_tokens.sum() / sizes[usable].sum()),  # 1 for tokens, and of a byte for words
            "vocab_size": pool.vocab_size,
            "steps": fitted.num_steps,
            "held_out": {"folds": FOLDS, **kept},
        }
        write_scorer(_scorer(config.unit, fitted.weights, fitted.lengths, card), out)
        return card


def _target(run: RunDir, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the documents that have a score: positions, the score (larger is better), and who is chosen."""
    path, table = run.path / EVIDENCE, run.evidence()
    fits = [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or field.name == MEMBERSHIP
    ]
    if name not in fits:
        raise InputError(field="target", must=f"be one of {', '.join(fits)}, a column of {path}", got=name)
    column = table[name].cast(pa.float64())
    scored = pc.and_(table[ORDER].is_valid(), pc.and_(column.is_valid(), pc.is_finite(column)))
    positions = np.flatnonzero(scored.fill_null(False).to_numpy()).astype(np.int64)
    order = column.take(pa.array(positions)).to_numpy()
    return positions, -order if name == ORDER else order, run.selected()[positions]


def _hashed(
    run: RunDir, positions: NDArray[np.int64], unit: Unit, advance: Advance
) -> tuple[list[Hashed], NDArray[np.int64]]:
    """Hash these documents, block after block; return the size of each, too: bytes of its text, or its tokens."""
    pool = run.corpus("pool")
    if unit == "tokens":
        return [
            _hashed_tokens([pool.tokens(position) for position in part.tolist()], advance)
            for part in np.split(positions, range(_PART, len(positions), _PART))
        ], pool.num_tokens[positions]
    hashed, held, sizes, num_held = list[Hashed](), list[bytes](), list[int](), 0
    wanted = np.zeros(pool.num_samples, dtype=bool)
    wanted[positions] = True
    for is_wanted, text in zip(wanted.tolist(), texts(pool, run.config.text_field), strict=True):
        if not is_wanted:
            continue
        held.append(text.encode())
        sizes.append(len(held[-1]))
        num_held += sizes[-1]
        if num_held >= _BLOCK_BYTES:
            hashed.append(words(*joined(held)))
            held, num_held = [], 0
        advance(1)
    return [*hashed, words(*joined(held))], np.array(sizes, dtype=np.int64)


def _hashed_tokens(documents: list[NDArray[np.int64]], advance: Advance) -> Hashed:
    bounds = np.zeros(len(documents) + 1, dtype=np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    advance(len(documents))
    return tokens(np.concatenate(documents)), bounds


def _scorer(unit: Unit, weights: NDArray[np.float64], lengths: NDArray[np.float64], card: dict[str, Any]) -> Scorer:
    """Round the fit's weights to whole numbers."""
    largest = float(np.abs(weights).max())
    scale = largest / _LARGEST if largest > 0 else 1.0
    return Scorer(
        unit=unit,
        weights=np.rint(weights / scale).astype(np.int32),
        scale=scale,
        lengths=lengths,
        card=json.loads(json.dumps(card, allow_nan=False)),
    )
