"""The chosen documents in the tokens of the model that will be annealed, where a smaller one chose in its own.

K chosen documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from direct_anneal.data import Corpus, TokenLayout, expand, prepare
from direct_anneal.errors import InputError, option
from direct_anneal.export.inputs import Records
from direct_anneal.progress import Advance
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation, fields_of


@dataclass(frozen=True, kw_only=True)
class Content:
    """The tokens of documents by their positions in the pool.

    Attributes:
        corpus: where they lie.
        rows: their places in it; None where these are their positions.
        tokens: how they became tokens.
    """

    corpus: Corpus
    rows: dict[int, int] | None
    tokens: Tokenisation

    def row(self, position: int) -> int:
        """Place of a pool document in the corpus."""
        return position if self.rows is None else self.rows[position]

    def num_prompt(self, positions: np.ndarray) -> np.ndarray:
        """Count the leading tokens of these documents that are not predicted, (K,) int64."""
        return np.asarray(self.corpus.num_prompt[[self.row(position) for position in positions.tolist()]])

    def has(self, positions: np.ndarray) -> np.ndarray:
        """Mark the documents that are there, (K,) bool."""
        if self.rows is None:
            return np.ones(len(positions), dtype=bool)
        return np.array([position in self.rows for position in positions.tolist()], dtype=bool)


def retokenised(run: RunDir, selected: np.ndarray, directory: Path, advance: Advance) -> Content:
    """Tokenise the chosen documents anew, with the tokenizer of the run's model.

    Args:
        selected: (N,) bool.
        directory: where text and tokens are kept meanwhile.

    Raises:
        InputError: the model's tokenizer cannot be read or has changed since, or a chosen document is tokens alone.

    Cost: disk the chosen documents' text and tokens; the sources are read once more.
    """
    model = run.checkpoint()
    own = Tokenisation.of(model, None)
    if own.tokenizer != run.tokens.annealed_tokenizer:
        raise InputError(
            subject=f"the tokenizer of {model.name}",
            must="be the one that it had when the selection was made",
            got="but has changed since",
            do=f"put it back, or run select again with {option('overwrite')}",
        )
    directory.mkdir()
    path, places = directory / "chosen.jsonl", np.flatnonzero(selected)
    records = Records(run, selected, directory / "records", lambda _: None)
    if "input_ids" in records.schema.names:
        raise InputError(
            subject="the chosen documents",
            must=f"be text, since {model.name} has another tokenizer than the model that chose",
            got="but some are tokens",
            do="give their text to select",
        )
    with path.open("wb") as lines:
        lines.writelines(records.line(place) + b"\n" for place in places.tolist())
    records.remove()
    layout = TokenLayout.of(own.vocab_size, own.separator)
    corpus = prepare(
        expand([str(path)], "pool", layout),
        role="chosen documents",
        fields=fields_of(run.config),
        load_tokenizer=model.load_tokenizer,
        tokenizer_fingerprint=own.tokenizer,
        vocab_size=own.vocab_size,
        max_length=own.max_length,
        directory=directory / "tokens",
        advance=advance,
    )
    rows = corpus.index["row"].to_numpy()
    return Content(
        corpus=corpus, rows=dict(zip(places[rows].tolist(), range(corpus.num_samples), strict=True)), tokens=own
    )
