"""One source's tokens and index on disk: written once, committed by a record, used again while nothing changed.

A piece is four files that share a key, the hash of everything that shapes its content but the source's own bytes:

    <key>.tokens            the samples' tokens end to end, raw little-endian uint16 or uint32
    <key>.parquet           a row per sample: id (null: made from path and row), row, domain, num_tokens, num_prompt (of
                            them, the leading ones that are not predicted), offset
    <key>.incidents.jsonl   what was left out, or kept with a remark
    <key>.json              the commit record, written last: without it the other three do not count
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import smallest
from direct_anneal.data.issues import REJECTIONS, Incident
from direct_anneal.data.sources import Source, State
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, replacing

_VERSION = 2
_FLUSH_ROWS = 65_536
_OURS = re.compile(r"([0-9a-f]{32})\.(tokens|parquet|incidents\.jsonl|json)(\.tmp)?")

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("domain", pa.string()),
        ("num_tokens", pa.int64()),
        ("num_prompt", pa.int64()),
        ("offset", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What shapes the content of a piece beside the source itself."""

    fields: Fields
    vocab_size: int
    max_length: int
    tokenizer_fingerprint: str

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest of uint16 and uint32 that holds every token."""
        return smallest(self.vocab_size)

    def fingerprint(self) -> str:
        """A hash of the options and of the version of the piece's format."""
        return _short_hash(json.dumps([_VERSION, asdict(self)], sort_keys=True))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document that can be used; id None: made from its place once the corpus is put together."""

    row: int
    id: str | None
    domain: str
    tokens: np.ndarray  # (T,) int64
    num_prompt: int  # leading tokens that are not predicted


@dataclass(frozen=True, kw_only=True)
class PieceRecord:
    """The commit record. Equal tokens_sha256 and index_sha256 mean equal samples, wherever the source lies."""

    source: str
    format: str
    options: str
    state: State
    num_samples: int
    num_tokens: int
    incidents: dict[str, int]
    tokens_sha256: str
    index_sha256: str  # over (id, or row where there is none; num_tokens; num_prompt)
    sizes: dict[str, int]
    fields_seen: dict[str, int] | None = None  # records that have each field that was named; None: not counted

    @property
    def num_records(self) -> int:
        """Records read, usable or not."""
        return self.num_samples + sum(count for kind, count in self.incidents.items() if kind in REJECTIONS)


@dataclass(frozen=True)
class Piece:
    """Where the piece of one source lies, whether it exists or not."""

    directory: Path
    key: str

    @property
    def tokens_path(self) -> Path:
        return self._path("tokens")

    @property
    def index_path(self) -> Path:
        return self._path("parquet")

    @property
    def incidents_path(self) -> Path:
        return self._path("incidents.jsonl")

    @property
    def record_path(self) -> Path:
        return self._path("json")

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.key}.{suffix}"


def piece_of(source: Source, options: Options, directory: Path) -> Piece:
    """The piece that this source gets under these options."""
    layout = "" if source.layout is None else f"\0{source.layout}"
    return Piece(directory, _short_hash(f"{source}\0{options.fingerprint()}{layout}"))


def reusable_record(piece: Piece, source: Source) -> PieceRecord | None:
    """The record of a piece that is whole and whose source has not changed since; None otherwise."""
    try:
        fields = json.loads(piece.record_path.read_text(encoding="ascii"))
        fields["state"] = tuple(tuple(file) for file in fields["state"])
        record = PieceRecord(**fields)
        sizes = {path.name: path.stat().st_size for path in _data_paths(piece)}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    return record if record.state == source.state() and record.sizes == sizes else None


def write_piece(
    piece: Piece, source: Source, options: Options, entries: Iterable[Sample | Incident], fields_seen: dict[str, int]
) -> PieceRecord:
    """Writes the piece from its samples and incidents, in order; memory: about 65,536 rows of the index.

    Args:
        fields_seen: for the record; it may be counted while the entries come.

    Raises:
        InputError: the source changed while it was read.
        OSError: the disk is full, or fails; nothing is committed.
    """
    state = source.state()
    # An old record may not outlive its files: the source could later be put back to the state that it names.
    piece.record_path.unlink(missing_ok=True)
    incidents: Counter[str] = Counter()
    with ExitStack() as stack:
        tokens_file = stack.enter_context(_open_replacing(piece.tokens_path))
        incidents_file = stack.enter_context(_open_replacing(piece.incidents_path))
        index_path = stack.enter_context(replacing(piece.index_path))
        index = stack.enter_context(_IndexWriter(index_path))
        tokens_sha256 = hashlib.sha256()
        for entry in entries:
            if isinstance(entry, Incident):
                incidents[entry.kind] += 1
                incidents_file.write(entry.to_line().encode("ascii"))
                continue
            tokens = entry.tokens.astype(options.dtype).tobytes()
            tokens_file.write(tokens)
            tokens_sha256.update(tokens)
            index.add(entry)
    if source.state() != state:
        raise InputError(f"{source} must stay as it is while it is read, but changed: start again")
    record = PieceRecord(
        source=str(source),
        format=source.format,
        options=options.fingerprint(),
        state=state,
        num_samples=index.num_samples,
        num_tokens=index.num_tokens,
        incidents=dict(sorted(incidents.items())),
        tokens_sha256=tokens_sha256.hexdigest(),
        index_sha256=index.sha256.hexdigest(),
        sizes={path.name: path.stat().st_size for path in _data_paths(piece)},
        fields_seen=fields_seen,
    )
    with _open_replacing(piece.record_path) as record_file:
        record_file.write(json.dumps(asdict(record), indent=1).encode("ascii"))
    return record


def remove_strangers(directory: Path, pieces: Iterable[Piece]) -> None:
    """Removes pieces other than these, and temporaries; files that no piece could own stay."""
    keys = {piece.key for piece in pieces}
    for path in directory.iterdir():
        name = _OURS.fullmatch(path.name)
        if name and (name[1] not in keys or path.name.endswith(TEMPORARY_SUFFIX)):
            path.unlink()


def read_index(piece: Piece) -> pa.Table:
    """The piece's index, with the domains dictionary-encoded."""
    return pq.read_table(piece.index_path, read_dictionary=["domain"])


class _IndexWriter:
    """Writes <key>.parquet in bounded memory and hashes what identifies its samples."""

    def __init__(self, path: Path) -> None:
        self.num_samples = 0
        self.num_tokens = 0
        self.sha256 = hashlib.sha256()
        self._writer = pq.ParquetWriter(path, _SCHEMA)
        self._rows: list[tuple[str | None, int, str, int, int, int]] = []

    def __enter__(self) -> _IndexWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exception_type is None:
                self._flush()
        finally:
            self._writer.close()

    def add(self, sample: Sample) -> None:
        num_tokens = len(sample.tokens)
        name = f"#{sample.row}" if sample.id is None else f"={sample.id}"
        self.sha256.update(f"{len(name)}:{name}:{num_tokens}:{sample.num_prompt},".encode())
        self._rows.append((sample.id, sample.row, sample.domain, num_tokens, sample.num_prompt, self.num_tokens))
        self.num_samples += 1
        self.num_tokens += num_tokens
        if len(self._rows) == _FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
            self._rows.clear()


@contextmanager
def _open_replacing(path: Path) -> Iterator[pa.NativeFile]:
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


def _data_paths(piece: Piece) -> tuple[Path, Path, Path]:
    return piece.tokens_path, piece.index_path, piece.incidents_path


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
