"""Documents of the validation set: in memory, dealt into folds, and found again in the pool.

M validation documents, N of the pool, k folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.io.digests import short_digest

Tokens = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Texts:
    """Some documents of a corpus, read into memory; can be packed as a corpus can.

    Attributes:
        ids: of each.
        contents: tokens of each, (T,).
        num_prompt: leading tokens of each that are not predicted.
    """

    ids: list[str]
    contents: list[Tokens]
    num_prompt: NDArray[np.int64]

    @classmethod
    def of(cls, corpus: Corpus) -> Texts:
        """Read all documents of a corpus into memory."""
        ids: list[str] = corpus.index["id"].to_pylist()
        return cls(ids, [corpus.tokens(row) for row in range(corpus.num_samples)], corpus.num_prompt)

    def take(self, rows: NDArray[np.intp]) -> Texts:
        """Take the documents at these positions."""
        return Texts([self.ids[row] for row in rows], [self.contents[row] for row in rows], self.num_prompt[rows])

    @property
    def index(self) -> pa.Table:
        return pa.table({"id": pa.array(self.ids, pa.large_string())})

    @property
    def num_samples(self) -> int:
        return len(self.ids)

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        return np.array([len(tokens) for tokens in self.contents], dtype=np.int64)

    def tokens(self, i: int) -> Tokens:
        return self.contents[i]

    def of_folds(self, num_folds: int) -> NDArray[np.int64]:
        """Deal documents out to folds, (M,), in the order of hashes of ids, so that folds are of equal size.

        Documents with the same tokens are in one fold, or a left-out one would have been seen.
        """
        keys = [key_of(tokens) for tokens in self.contents]
        first: dict[bytes, str] = {}
        for key, name in zip(keys, self.ids, strict=True):
            first[key] = min(first.get(key, name), name)
        dealt = sorted(first, key=lambda key: short_digest(first[key]))
        place = {key: position % num_folds for position, key in enumerate(dealt)}
        return np.array([place[key] for key in keys], dtype=np.int64)


def key_of(tokens: Tokens) -> bytes:
    """Return a hash that documents share when they have the same tokens."""
    return short_digest(np.ascontiguousarray(tokens, dtype="<i8").tobytes())


def overlap(pool: Corpus, validation: Texts) -> dict[int, list[int]]:
    """Find the pool's documents whose tokens are also a validation document's: which of those, by pool position.

    Cost: reads the pool's tokens once where some length agrees.
    """
    rows: dict[bytes, list[int]] = {}
    for row, tokens in enumerate(validation.contents):
        rows.setdefault(key_of(tokens), []).append(row)
    lengths = np.unique(validation.num_tokens)
    candidates: list[Any] = np.flatnonzero(np.isin(pool.num_tokens, lengths)).tolist()
    found = ((position, rows.get(key_of(pool.tokens(position)))) for position in candidates)
    return {position: same for position, same in found if same is not None}
