"""One source of a pool, scored in a stream: its score file, its histogram, and the record that makes both count.

Below OUT/scores: 00042.parquet, 00042.histogram.parquet and 00042.json, for source 42 of the pool's listing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.data import Fields, Source, listed, value_of
from direct_anneal.data.fields import TOKENS_FIELD
from direct_anneal.data.sources import BadRecord
from direct_anneal.distill.histogram import SCHEMA as HISTOGRAM_SCHEMA
from direct_anneal.distill.histogram import added, counted
from direct_anneal.distill.scorer import Scorer, joined
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.records import read_sealed, write_record
from direct_anneal.io.redaction import redacted

SCORES = "scores"
_FILES = ("parquet", "histogram.parquet")
MAX_DOMAINS = 4096

_BLOCK_BYTES = 2**18  # of text: what is made of it stays in the processor's cache
_BLOCK_TOKENS = 2**16
_ROW_GROUP = 2**18
_PLACES = 10  # rows that are named of each kind of issue

_Columns = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("domain", pa.dictionary(pa.int32(), pa.string())),
        ("size", pa.int64()),
        ("score", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source to score.

    Attributes:
        number: in the pool's listing.
        source: the file.
        state: of it, when it was listed.
    """

    number: int
    source: Source
    state: Any

    def path(self, out: Path, ending: str) -> Path:
        """Return the path of one of the part's files."""
        return out / SCORES / f"{self.number:05d}.{ending}"


@dataclass
class _Block:
    """Documents that are scored at once."""

    rows: list[int] = field(default_factory=list)
    domains: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    tokens: list[NDArray[np.integer]] = field(default_factory=list)
    size: int = 0


@dataclass
class _Found:
    """The counts of a source, beside its scores."""

    names: dict[str, int] = field(default_factory=dict)
    issues: dict[str, dict[str, Any]] = field(default_factory=dict)

    def issue(self, kind: str, row: int) -> None:
        entry = self.issues.setdefault(kind, {"count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < _PLACES:
            entry["rows"].append(row)


def is_scored(out: Path, part: Part, scorer: str) -> bool:
    """True if a part's files are all there, whole, and of this scorer and source."""
    try:
        record = read_sealed(part.path(out, "json"))
        return bool(record["source"] == redacted(str(part.source)) and record["scorer"] == scorer) and all(
            sha256_of_file(part.path(out, ending)) == record["files"][ending] for ending in _FILES
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def scores_of(out: Path, part: Part) -> Iterator[pa.Table]:
    """Read the scores of a part, a row group at a time."""
    with pq.ParquetFile(part.path(out, "parquet")) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def score_part(
    out: Path, part: Part, scorer: Scorer, fields: Fields, advance: Callable[[int], object] = lambda _: None
) -> dict[str, Any]:
    """Score one source and write its files, the record last.

    Returns:
        the record.

    Raises:
        InputError: the source is damaged as a whole, is of the other kind than the scorer, changed meanwhile, or has
            more than MAX_DOMAINS domains.

    Memory: a block of documents, a row group of scores, and the histogram.
    """
    found, held, histogram = _Found(), list[_Columns](), HISTOGRAM_SCHEMA.empty_table()
    part.path(out, "json").parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(part.path(out, "parquet")) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for block in _blocks(part.source, scorer, fields, found):
            held.append(_scored(block, scorer, found))
            advance(block.size)
            if sum(len(rows) for rows, *_ in held) >= _ROW_GROUP:
                histogram, held = _flushed(writer, held, list(found.names), histogram), []
        histogram = _flushed(writer, held, list(found.names), histogram)
    documents, size = (int(histogram[name].to_numpy().sum()) for name in ("documents", "size"))
    if part.source.state() != part.state:
        raise InputError(
            subject=str(part.source), must="stay as it is while it is read", got="but changed", do="score it again"
        )
    with replacing(part.path(out, "histogram.parquet")) as temporary:
        pq.write_table(histogram, temporary, compression="zstd")
    record = {
        "part": part.number,
        "source": str(part.source),
        "scorer": scorer.fingerprint,
        "documents": documents,
        "size": size,
        "unit": "bytes" if scorer.unit == "words" else "tokens",
        "issues": dict(sorted(found.issues.items())),
        "files": {ending: sha256_of_file(part.path(out, ending)) for ending in _FILES},
    }
    return write_record(part.path(out, "json"), record)


def _blocks(source: Source, scorer: Scorer, fields: Fields, found: _Found) -> Iterator[_Block]:
    stem, is_words, block = source.stem, scorer.unit == "words", _Block()
    limit = _BLOCK_BYTES if is_words else _BLOCK_TOKENS
    vocab_size, first = scorer.card["vocab_size"], listed(fields.text)[0]
    for row, record in source.records(fields.columns):
        if isinstance(record, BadRecord):
            found.issue(record.kind, row)
            continue
        if is_words:
            text = record.get(first)  # the usual case: value_of costs as much as parsing a short record
            if not isinstance(text, str):
                text = value_of(record, fields.text)
            if not isinstance(text, str):
                found.issue("no-text", row)
                continue
            content = text.encode()
            block.texts.append(content)
            block.size += len(content)
        else:
            ids = record.get(TOKENS_FIELD)
            if ids is None or not len(ids):
                found.issue("no-tokens", row)
                continue
            try:
                ids = np.asarray(ids)
                if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 0 <= ids.min() <= ids.max() < vocab_size:
                    raise ValueError
            except ValueError:
                found.issue("bad-tokens", row)
                continue
            block.tokens.append(ids)
            block.size += len(ids)
        domain = value_of(record, fields.domain)
        block.domains.append(_domain(stem if domain is None else str(domain), found, source))
        block.rows.append(row)
        if block.size >= limit:
            yield block
            block = _Block()
    if block.rows:
        yield block


def _domain(name: str, found: _Found, source: Source) -> int:
    place = found.names.setdefault(name, len(found.names))
    if place == MAX_DOMAINS:
        raise InputError(
            field="domain_field",
            must=f"name at most {MAX_DOMAINS:,} different domains a file",
            got=f"but {source} has more",
            do=f"name a field with fewer, or one that no record has: {option('domain_field')} _, for the files' names",
        )
    return place


def _scored(block: _Block, scorer: Scorer, found: _Found) -> _Columns:
    """Return rows, domains, sizes and scores of the documents that have a score."""
    if scorer.unit == "words":
        text, bounds = joined(block.texts)
        scores = scorer.score_texts(text, bounds)
    else:
        bounds = np.zeros(len(block.tokens) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in block.tokens], out=bounds[1:])
        scores = scorer.score_tokens(np.concatenate(block.tokens), bounds)
    rows, domains = np.array(block.rows, dtype=np.int64), np.array(block.domains, dtype=np.int32)
    is_some = ~np.isnan(scores)
    for row in rows[~is_some].tolist():
        found.issue("empty-text", row)
    return rows[is_some], domains[is_some], np.diff(bounds)[is_some], scores[is_some]


def _flushed(writer: pq.ParquetWriter, held: list[_Columns], names: list[str], histogram: pa.Table) -> pa.Table:
    """Write a row group; returns the histogram with it."""
    if not held:
        return histogram
    rows, domains, sizes, scores = (np.concatenate(column) for column in zip(*held, strict=True))
    named = pa.DictionaryArray.from_arrays(domains, pa.array(names, pa.string()))
    writer.write_table(pa.table([rows, named, sizes, scores], schema=SCHEMA), row_group_size=_ROW_GROUP)
    return added([histogram, counted(domains.astype(np.int64), names, scores, sizes)])
