"""A corpus's documents as they stand in its sources, for what needs text instead of tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from direct_anneal.data.corpus import Corpus
from direct_anneal.data.fields import Names, listed, quoted, value_of
from direct_anneal.data.sources import BadRecord
from direct_anneal.errors import InputError


def texts(corpus: Corpus, field: Names = "text") -> Iterator[str]:
    """Return the text of each sample, in the corpus's order; reads the sources once more, memory a batch of records.

    Raises:
        InputError: a sample has tokens and no text, or a source changed since the corpus was prepared.
    """
    everything = np.ones(corpus.num_samples, dtype=bool)
    for position, record in chosen_records(corpus, everything, listed(field)):
        text = value_of(record, field)
        if not isinstance(text, str):
            source, row = (corpus.index[column][position].as_py() for column in ("source", "row"))
            raise InputError(
                subject=str(source),
                must=f"hold text in {quoted(field)} for this",
                got=f"but its row {row} has tokens alone",
                do="give documents with their text",
            )
        yield text


def chosen_records(
    corpus: Corpus, selected: np.ndarray, columns: Collection[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (position in the corpus, record) of those selected, in the corpus's order; memory a batch of records.

    Args:
        selected: (N,) bool.
        columns: of Parquet and Arrow, those to read; other records are whole.

    Raises:
        InputError: a source changed since the corpus was prepared.
    """
    rows = corpus.index["row"].to_numpy()
    for source, state, start, stop in zip(
        corpus.sources, corpus.states, corpus.bounds[:-1], corpus.bounds[1:], strict=True
    ):
        if source.state() != state:
            raise InputError(
                subject=str(source), must="be as it was when it was read", got="but changed since", do="start again"
            )
        wanted = iter((start + np.flatnonzero(selected[start:stop])).tolist())
        position = next(wanted, None)
        if position is None:
            continue
        for row, record in source.records(columns):
            if row != rows[position]:
                continue
            yield position, {} if isinstance(record, BadRecord) else record
            position = next(wanted, None)
            if position is None:
                break


def texts_at(corpus: Corpus, positions: Collection[int], field: Names = "text") -> dict[int, str | None]:
    """Return the texts of a few samples by position; None where a sample has tokens alone.

    Cost: reads the sources that hold them, of Parquet only the row groups.

    Raises:
        InputError: a source changed since the corpus was prepared.
    """
    rows, wanted = corpus.index["row"], np.array(sorted(set(positions)), dtype=np.int64)
    found: dict[int, str | None] = {}
    for source, state, start, stop in zip(
        corpus.sources, corpus.states, corpus.bounds[:-1], corpus.bounds[1:], strict=True
    ):
        here = wanted[(wanted >= start) & (wanted < stop)]
        if not len(here):
            continue
        if source.state() != state:
            raise InputError(
                subject=str(source), must="be as it was when it was read", got="but changed since", do="start again"
            )
        position_of = dict(zip(rows.take(here).to_pylist(), here.tolist(), strict=True))
        for row, record in source.records_at(np.array(sorted(position_of)), listed(field)):
            text = None if isinstance(record, BadRecord) else value_of(record, field)
            found[position_of[row]] = text if isinstance(text, str) else None
    return found
