"""The corpus: the caches of all sources as one index and one array of tokens."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from direct_anneal.data.issues import Issue, IssueSummary
from direct_anneal.data.sources import Source, State
from direct_anneal.data.token_cache import CacheRecord, Options, TokenCache, read_index
from direct_anneal.io.digests import sha256

_MAX_MAPS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """N samples with their tokens on disk. Memory: the index.

    Attributes:
        index: a row per sample, in source order: id (unique), source (its path, dictionary-encoded), row (in the
            source, int64), domain (dictionary-encoded), num_tokens (int64).
        num_tokens: (N,) int64.
        num_prompt: (N,) int64: how many leading tokens of each are not predicted; 0 without a prompt.
        vocab_size: every token lies in [0, vocab_size).
        fingerprint: equal for equal samples in equal order, wherever their files lie; covers tokens, prompts and ids.
        issues: what was left out, or kept with a remark.
        sources: the files, in order.
        bounds: (S + 1,) int64: source s holds the samples bounds[s] to bounds[s + 1] - 1.
        states: of each source when it was read.
        fields_seen: how many records have each field that was named; None where that was not counted.
        directory: where tokens and index lie.
    """

    index: pa.Table
    num_tokens: np.ndarray
    num_prompt: np.ndarray
    vocab_size: int
    fingerprint: str
    issues: IssueSummary
    sources: list[Source]
    bounds: np.ndarray
    states: list[State]
    fields_seen: dict[str, int] | None
    directory: Path
    _offsets: np.ndarray  # (N,) int64, in tokens, within the source's own file
    _token_paths: list[Path]
    _dtype: np.dtype[np.unsignedinteger]
    _maps: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.num_tokens)

    def only(self, rows: np.ndarray) -> Corpus:
        """Return the corpus of some samples alone, at these positions, ascending; its issues are those of all."""
        return replace(
            self,
            index=self.index.take(pa.array(rows)),
            num_tokens=self.num_tokens[rows],
            num_prompt=self.num_prompt[rows],
            fingerprint=sha256(self.fingerprint.encode() + np.asarray(rows, dtype="<i8").tobytes()),
            bounds=np.searchsorted(rows, self.bounds).astype(np.int64),
            _offsets=self._offsets[rows],
        )

    def tokens(self, i: int) -> np.ndarray:
        """Return the tokens of sample i, shape (T,), int64; read through a memory map.

        Raises:
            IndexError: i is not in [0, N).
        """
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of a corpus of {self.num_samples}")
        source = int(np.searchsorted(self.bounds, i, side="right")) - 1
        if source not in self._maps:
            if len(self._maps) >= _MAX_MAPS:  # each holds a file descriptor
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[source] = np.memmap(self._token_paths[source], dtype=self._dtype, mode="r")
        start = self._offsets[i]
        return self._maps[source][start : start + self.num_tokens[i]].astype(np.int64)


def assemble(
    sources: Sequence[Source],
    caches: Sequence[TokenCache],
    records: Sequence[CacheRecord],
    options: Options,
    directory: Path,
) -> Corpus:
    """Put the caches together: whole ids, duplicates told apart. Nothing is written. Cost: O(N)."""
    counts = [record.num_samples for record in records]
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    tables = [read_index(cache, record) for cache, record in zip(caches, records, strict=True)]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    source_column = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(sources), dtype=np.int32), counts)),
        pa.array([str(source) for source in sources]),
    )
    given = _single_chunk(table["id"].cast(pa.large_string()))
    ids, duplicates = _unique_ids(given, source_column, _single_chunk(table["row"]))
    index = pa.table(
        {
            "id": ids,
            "source": source_column,
            "row": table["row"],
            "domain": table["domain"],
            "num_tokens": table["num_tokens"],
        }
    )
    counts_by_kind: Counter[str] = Counter()
    for record in records:
        counts_by_kind.update(record.incidents)
    if duplicates.any():
        counts_by_kind["duplicate-id"] += int(duplicates.sum())
    listing = _Listing(index, np.flatnonzero(duplicates), bounds, [cache.issues_path for cache in caches], sources)
    return Corpus(
        index=index,
        num_tokens=index["num_tokens"].to_numpy(),
        num_prompt=table["num_prompt"].to_numpy(),
        vocab_size=options.vocab_size,
        fingerprint=_fingerprint(records, options),
        issues=IssueSummary(counts=dict(counts_by_kind), listing=listing),
        sources=list(sources),
        bounds=bounds,
        states=[_named(source, record) for source, record in zip(sources, records, strict=True)],
        directory=directory,
        fields_seen=_add_up([record.fields_seen for record in records]),
        _offsets=table["offset"].to_numpy(),
        _token_paths=[cache.tokens_path for cache in caches],
        _dtype=options.dtype,
    )


def _add_up(seen: Sequence[dict[str, int] | None]) -> dict[str, int] | None:
    total: Counter[str] = Counter()
    for counts in seen:
        if counts is None:
            return None
        total.update(counts)
    return dict(total)


def _named(source: Source, record: CacheRecord) -> State:
    """Return the state that a record has seen, with names as they are: records hold them without secrets."""
    names = (name for name, _, _ in source.state())
    return tuple((name, size, time) for name, (_, size, time) in zip(names, record.state, strict=True))


def _unique_ids(given: pa.Array, source: pa.DictionaryArray, row: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return unique ids, (N,), and which samples had to be qualified for it, (N,) bool.

    Without an id of its own a sample is called source:row. Of equal ids the first stays, the others become
    id@source:row; should that be taken too, once more.
    """
    text = pa.large_string()
    colon, at = pa.scalar(":", text), pa.scalar("@", text)
    place = pc.binary_join_element_wise(source.dictionary_decode().cast(text), row.cast(text), colon)
    ids = pc.coalesce(given, place)
    qualified = np.zeros(len(ids), dtype=bool)
    while (repeated := _repeated(ids)).any():
        ids = pc.if_else(pa.array(repeated), pc.binary_join_element_wise(ids, place, at), ids)
        qualified |= repeated
    return ids, qualified


def _repeated(ids: pa.Array) -> np.ndarray:
    """Mark where an equal id stands earlier, (N,) bool."""
    # Codes are given out in order of first appearance: a first one exceeds all before it.
    codes: np.ndarray = ids.dictionary_encode().indices.to_numpy()
    repeated = np.zeros(len(codes), dtype=bool)
    repeated[1:] = codes[1:] <= np.maximum.accumulate(codes)[:-1]
    return repeated


def _fingerprint(records: Sequence[CacheRecord], options: Options) -> str:
    digest = hashlib.sha256(options.dtype.str.encode("ascii"))
    for record in records:
        digest.update(bytes.fromhex(record.tokens_sha256) + bytes.fromhex(record.index_sha256))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Listing:
    """Lines of all issues in source order, read from the caches whenever they are asked for."""

    index: pa.Table
    duplicates: np.ndarray  # positions, ascending
    bounds: np.ndarray
    paths: list[Path]
    sources: Sequence[Source]

    def __call__(self) -> Iterator[str]:
        for path, source, start, stop in zip(self.paths, self.sources, self.bounds[:-1], self.bounds[1:], strict=True):
            with path.open(encoding="ascii") as own:
                yield from own
            first, last = np.searchsorted(self.duplicates, [start, stop])
            for position in self.duplicates[first:last].tolist():
                detail = f"an earlier sample has this id: now {self.index['id'][position].as_py()}"
                row = self.index["row"][position].as_py()
                yield Issue(kind="duplicate-id", source=str(source), row=row, detail=detail).to_line()


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined: pa.Array = column.combine_chunks()
    return combined
