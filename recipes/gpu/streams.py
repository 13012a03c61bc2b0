"""The windows that `direct-anneal anneal` would train on, for many runs on parts of one pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.train import PackedWindows, Part


@dataclass(frozen=True)
class Subset:
    """Some documents of a corpus, as far as `PackedWindows` looks at one."""

    corpus: Corpus
    rows: NDArray[np.int64]

    @property
    def index(self) -> pa.Table:
        return self.corpus.index.take(pa.array(self.rows))

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        return self.corpus.num_tokens[self.rows]

    @property
    def num_samples(self) -> int:
        return len(self.rows)

    def tokens(self, i: int) -> NDArray[np.int64]:
        return self.corpus.tokens(int(self.rows[i]))


def stream(
    pool: Corpus,
    chosen: NDArray[np.int64],
    *,
    replay: float,
    num_windows: int,
    window: int,
    separator: int | None,
    seed: int,
) -> NDArray[np.uint16]:
    """Packed windows of chosen documents, with random ones of the pool beside them, (num_windows, window)."""
    parts = [Part(cast(Corpus, Subset(pool, chosen)))]
    if replay:
        parts.append(Part(pool, replay))
    windows = PackedWindows(parts, num_windows=num_windows, window=window, separator=separator, seed=seed)
    found: list[Any] = [windows[i]["input_ids"].numpy() for i in range(num_windows)]
    return np.stack(found).astype(np.uint16)
