"""A look at the sources without reading them all: some documents as a corpus, and how much the whole is.

n documents of the part; files are read from their beginnings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from direct_anneal.data.corpus import Corpus
from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import Record
from direct_anneal.data.preparation import prepare
from direct_anneal.data.sources import Source
from direct_anneal.data.special_tokens import TokenizerLike

_MAX_FILES = 32
_FEWEST_RECORDS = 32  # of a file
_COUNTED_BYTES = 32 * 2**20  # of all files together, as they lie on disk


@dataclass(frozen=True)
class Part:
    """Some documents of many.

    Attributes:
        corpus: n of them, as `prepare` makes it.
        weights: (n,) how many documents of the whole each stands for; all 1 where everything was read.
        num_bytes: of all sources, on disk.
    """

    corpus: Corpus
    weights: np.ndarray
    num_bytes: int

    @property
    def num_samples(self) -> int:
        """Documents in the whole, estimated."""
        return round(float(self.weights.sum()))

    @property
    def num_tokens(self) -> int:
        """Tokens in the whole, estimated."""
        return round(float(self.weights @ self.corpus.num_tokens))


def sample(
    sources: Sequence[Source],
    *,
    num_records: int,
    role: str,
    fields: Fields,
    load_tokenizer: Callable[[], TokenizerLike],
    tokenizer_fingerprint: str,
    vocab_size: int,
    max_length: int,
    directory: Path,
    advance: Callable[[int], object] = lambda _: None,
) -> Part:
    """Read about so many records from the beginnings of at most 32 files, spread over the list of them.

    A file's records are counted where its format says their number or it is small, and else taken to go on as densely
    as they begin. Arguments as of `prepare`, and its errors.
    """
    picked = [sources[i] for i in np.unique(np.linspace(0, len(sources) - 1, _MAX_FILES).astype(int))]
    limit = max(_FEWEST_RECORDS, num_records // len(picked))
    beginnings = [
        _Beginning(source.path, source.format, source.layout, limit, remote=source.remote, name=source.name)
        for source in picked
    ]
    corpus = prepare(
        beginnings,
        role=role,
        fields=fields,
        load_tokenizer=load_tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint,
        vocab_size=vocab_size,
        max_length=max_length,
        directory=directory,
        advance=advance,
    )
    sizes = {source.path: sum(size for _, size, _ in source.state()) for source in sources}
    others = sum(sizes.values()) / max(1, sum(sizes[source.path] for source in picked))
    weights = np.repeat(
        [
            others * (max(1.0, source.count(_COUNTED_BYTES // len(picked)) / limit) if source.more else 1.0)
            for source in beginnings
        ],
        np.diff(corpus.bounds),
    )
    return Part(corpus, weights, sum(sizes.values()))


@dataclass(frozen=True)
class _Beginning(Source):
    """The first records of a source; `more` once it is known that they are not all."""

    limit: int = _FEWEST_RECORDS
    _rest: list[bool] = field(default_factory=list, compare=False)

    @property
    def more(self) -> bool:
        return bool(self._rest)

    def records(self, columns: Collection[str] | None = None) -> Iterator[tuple[int, Record]]:
        records = super().records(columns)
        yield from islice(records, self.limit)
        if next(records, None) is not None:
            self._rest.append(True)
