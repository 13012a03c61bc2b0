"""A pool and a validation set, and gradients for them that are made up, not computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.corpus_samples import prepared
from direct_anneal.baselines import Candidates
from direct_anneal.data import Corpus
from direct_anneal.features import SketchedGradients
from selection.tiny import documents

SKETCH_SIZE = 6


def corpus_of(directory: Path, records: Sequence[dict[str, Any]]) -> Corpus:
    directory.mkdir(parents=True)
    (directory / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return prepared(directory / "corpus", directory / "data.jsonl")


def gradients_of(corpus: Corpus, seed: int, unusable: Sequence[int] = ()) -> SketchedGradients:
    """Random gradients and losses, drawn for each id, in two blocks."""
    draws = [
        np.random.default_rng([seed, *name.encode()]).normal(size=SKETCH_SIZE + 1)
        for name in corpus.index["id"].to_pylist()
    ]
    values = np.array(draws)
    norms = np.linalg.norm(values[:, 1:], axis=1)
    units = (values[:, 1:] / norms[:, None]).astype(np.float16)
    usable = ~np.isin(np.arange(len(units)), unusable)
    table = corpus.index.append_column("loss", pa.array(np.abs(values[:, 0])))
    table = table.append_column("grad_norm", pa.array(norms))
    units = units[usable]
    return SketchedGradients(
        [units[:7], units[7:]], norms[usable], table.filter(pa.array(usable)), table.filter(pa.array(~usable))
    )


def candidates(directory: Path, *, reverse: bool = False, unusable: Sequence[int] = ()) -> Candidates:
    """Thirty documents of three domains, and ten of two of them to aim at; the pool backwards if asked."""
    records = documents(30, seed=21, prefix="p")
    pool = corpus_of(directory / "pool", records[::-1] if reverse else records)
    validation = corpus_of(directory / "validation", documents(10, seed=22, prefix="v", domains=("prose", "code")))
    return Candidates(
        pool,
        validation,
        gradients=(gradients_of(pool, 1, unusable), gradients_of(validation, 2)),
        path_losses={
            model: np.where(np.isin(np.arange(30), unusable), np.nan, _draws(pool, place, 1)[:, 0] ** 2 + 0.1)
            for place, model in enumerate(("start", "target", "prior", "conditional"))
        },
        hidden_states=(_draws(pool, 5, 4), _draws(validation, 6, 4)),
    )


def _draws(corpus: Corpus, seed: int, size: int) -> np.ndarray:
    """Normal numbers for each id, (N, size)."""
    names = corpus.index["id"].to_pylist()
    return np.array([np.random.default_rng([seed, *name.encode()]).normal(size=size) for name in names])
