"""The chosen documents, copied from their sources without change, one output for each format of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from direct_anneal.data.corpus import Corpus
from direct_anneal.data.fields import TOKENS_FIELD
from direct_anneal.data.formats import FORMATS, BadRecord, Choice
from direct_anneal.data.formats.tables import STATE_FILE
from direct_anneal.data.sources import Source, State
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import remove_directory, temporary_directory

SELECTED = "selected"


def check_writable(sources: Sequence[Source]) -> None:
    """Make sure that `write_selected` can bring the columns of these sources together. Cost: opens each table.

    What is still to be fetched is left for later.

    Raises:
        InputError: two Parquet files, or two saved datasets, give one column different types.
    """
    for name, format in FORMATS.items():
        format.check_alike([source.local() for source in sources if source.format == name and source.is_here])


def write_selected(corpus: Corpus, selected: np.ndarray, out_dir: Path, stem: str = SELECTED) -> list[Path]:
    """Copy the selected documents, in source order, into one output for each format in the corpus.

    JSON lines are copied byte for byte under the same compression (`selected.jsonl`, `.jsonl.gz`, `.jsonl.zst`), and
    so are the elements of JSON arrays and the records of CSV files; tables with all columns and types:
    `selected.parquet`, and `selected/` for `datasets.load_from_disk`. Where sources lack a column that others have, it
    is null. Tokens go into `selected.npy`, `.bin` or `.ds` and what belongs beside these, in the type that the format's
    trainer takes for the vocabulary. The same selection gives the same bytes. An output of an earlier call is replaced.

    Args:
        selected: (N,) bool.
        out_dir: made if need be.
        stem: of the outputs' names, in the place of "selected".

    Returns:
        The outputs, every file.

    Raises:
        ValueError: `selected` is not (N,) bool.
        InputError: a source changed since the corpus was prepared; columns do not go together; `selected/` exists
            and is no dataset.
        OSError: the disk is full, or fails; an output is whole or not there.

    Cost: one more read of the sources, of Parquet only the row groups that hold something selected.
    """
    if selected.shape != (corpus.num_samples,) or selected.dtype != np.bool_:
        raise ValueError(
            f"selected must be ({corpus.num_samples},) bool, one for each sample, but is {selected.shape} "
            f"{selected.dtype}: pass the mask over the whole corpus"
        )
    rows = corpus.index["row"].to_numpy()
    choices: dict[str, list[Choice]] = {}
    for source, state, start, stop in zip(
        corpus.sources, corpus.states, corpus.bounds[:-1], corpus.bounds[1:], strict=True
    ):
        positions = start + np.flatnonzero(selected[start:stop])
        choice = Choice(
            path=source.local(),
            rows=rows[positions],
            tokens=map(corpus.tokens, positions.tolist()),
            check_unchanged=partial(_check_unchanged, source, state),
        )
        choice.check_unchanged()
        choices.setdefault(source.format, []).append(choice)
    check_writable(corpus.sources)
    out_dir.mkdir(parents=True, exist_ok=True)
    if stem == SELECTED:
        return _written(choices, out_dir, corpus.vocab_size)
    with temporary_directory(out_dir / stem) as temporary:  # formats know one name for what they write
        outputs = _written(choices, temporary, corpus.vocab_size)
        return [_moved(path, out_dir / path.name.replace(SELECTED, stem, 1)) for path in outputs]


def _written(choices: Mapping[str, Sequence[Choice]], out_dir: Path, vocab_size: int) -> list[Path]:
    written = (format.write(choices[name], out_dir, vocab_size) for name, format in FORMATS.items() if name in choices)
    return [path for paths in written for path in paths]


def _moved(path: Path, target: Path) -> Path:
    """Give an output its name, in the place of an earlier one.

    Raises:
        InputError: a directory is to be written, and something else than a dataset has its name.
    """
    if path.is_dir() and target.exists():
        if target.is_symlink() or not (target / STATE_FILE).is_file():
            raise InputError(
                subject=str(target), must="be free for a dataset", got="but something else is there", do="move it away"
            )
        remove_directory(target)
    return path.replace(target)


def write_rows(source: Source, state: State, rows: np.ndarray, out_dir: Path, vocab_size: int) -> list[Path]:
    """Copy rows of one source, without a corpus, into `out_dir` as `selected.<the source's own format>`.

    Args:
        state: of the source when the rows were chosen.
        rows: (K,) int64, sorted.
        vocab_size: of files of tokens.

    Returns:
        The outputs, every file.

    Raises:
        InputError: the source has changed.
    """
    tokens = (
        record[TOKENS_FIELD]
        for _, record in source.records_at(rows, (TOKENS_FIELD,))
        if not isinstance(record, BadRecord)
    )
    choice = Choice(
        path=source.local(), rows=rows, tokens=tokens, check_unchanged=partial(_check_unchanged, source, state)
    )
    choice.check_unchanged()
    return FORMATS[source.format].write([choice], out_dir, vocab_size)


def _check_unchanged(source: Source, state: State) -> None:
    if source.state() != state:
        raise InputError(
            subject=str(source),
            must="be as it was when it was read",
            got="but changed since",
            do="put it back, or run the selection again",
        )
