"""One source's tokens and index on disk: written once, committed by a record, used again while nothing changed.

A source's token cache is four files that share a key, the hash of all that shapes its content but the source's bytes:

    <key>.tokens            the samples' tokens end to end, raw little-endian uint16 or uint32
    <key>.parquet           a row per sample: id (null: made from path and row), row, domain, num_tokens, num_prompt (of
                            them, the leading ones that are not predicted), offset
    <key>.incidents.jsonl   what was left out, or kept with a remark
    <key>.json              the commit record, written last, with digests of the other three and of itself: without
                            it, or where one of them differs, they do not count
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import smallest
from direct_anneal.data.issues import REJECTIONS, Issue
from direct_anneal.data.sources import Source, State
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, replacing
from direct_anneal.io.digests import short_hash, tree_digests
from direct_anneal.io.records import RecordError, read_sealed, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.io.tables import read_parquet

_VERSION = 2
_FLUSH_ROWS = 65_536
_OURS = re.compile(r"([0-9a-f]{32})\.(tokens|parquet|incidents\.jsonl|json)(?:(?:\.[0-9a-f]{16})?\.tmp)?")
_RECORD_TYPES = {
    **dict.fromkeys(("source", "format", "options", "tokens_sha256", "index_sha256"), str),
    **dict.fromkeys(("num_samples", "num_tokens"), int),
    **dict.fromkeys(("incidents", "digests"), dict),
    "state": list,
}

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
    """The options that shape the content of a token cache, beside the source."""

    fields: Fields
    vocab_size: int
    max_length: int
    tokenizer_fingerprint: str

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest of uint16 and uint32 that holds every token."""
        return smallest(self.vocab_size)

    def fingerprint(self) -> str:
        """Return a hash of the options and of the version of the cache's format."""
        described = asdict(self)
        if self.fields.special_tokens == "text":  # as where nobody was asked: what was made then is used again
            del described["fields"]["special_tokens"]
        return short_hash(json.dumps([_VERSION, described], sort_keys=True))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document that can be used; id None: made from its place once the corpus is put together."""

    row: int
    id: str | None
    domain: str
    tokens: np.ndarray  # (T,) int64
    num_prompt: int  # leading tokens that are not predicted


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """The commit record. Equal tokens_sha256 and index_sha256 mean equal samples, wherever the source lies; `digests`
    are of the files by suffix, with every byte in them."""

    source: str
    format: str
    options: str
    state: State
    num_samples: int
    num_tokens: int
    incidents: dict[str, int]  # issues by kind; files on disk keep the older word
    tokens_sha256: str
    index_sha256: str  # over (id, or row where there is none; num_tokens; num_prompt)
    digests: dict[str, str]
    fields_seen: dict[str, int] | None = None  # records that have each field that was named; None: not counted

    @property
    def num_records(self) -> int:
        """Records read, usable or not."""
        return self.num_samples + sum(count for kind, count in self.incidents.items() if kind in REJECTIONS)


@dataclass(frozen=True)
class TokenCache:
    """The files of one source's cache, whether they exist or not."""

    directory: Path
    key: str

    @property
    def tokens_path(self) -> Path:
        return self._path("tokens")

    @property
    def index_path(self) -> Path:
        return self._path("parquet")

    @property
    def issues_path(self) -> Path:
        return self._path("incidents.jsonl")

    @property
    def record_path(self) -> Path:
        return self._path("json")

    @property
    def paths(self) -> tuple[Path, Path, Path, Path]:
        """All four, the record last."""
        return self.tokens_path, self.index_path, self.issues_path, self.record_path

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.key}.{suffix}"


def cache_of(source: Source, options: Options, directory: Path) -> TokenCache:
    """Return the cache that this source gets under these options."""
    layout = "" if source.layout is None else f"\0{source.layout}"
    return TokenCache(directory, short_hash(f"{source}\0{options.fingerprint()}{layout}"))


def redacted_state(source: Source) -> State:
    """Return a source's state as a record holds it: names of files may hold secrets."""
    return tuple((redacted(name), size, time) for name, size, time in source.state())


def read_cache_record(cache: TokenCache) -> CacheRecord:
    """Return the record of a cache; its files are not looked at.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        RecordError: it is damaged, or of an earlier version.
    """
    fields = read_sealed(cache.record_path, _RECORD_TYPES)
    try:
        fields["state"] = tuple((str(name), int(size), int(time)) for name, size, time in fields["state"])
        record = CacheRecord(**fields)
        bytes.fromhex(record.tokens_sha256 + record.index_sha256)
    except (ValueError, TypeError) as error:
        raise RecordError(f"is no record of a token cache ({error})") from error
    return record


def reusable_records(caches: Sequence[TokenCache], sources: Sequence[Source]) -> list[CacheRecord | str]:
    """Return the record of each cache that is whole and whose source has not changed since; else why it does not count.

    Cost: reads every file of every cache once, in threads.
    """
    found: list[CacheRecord | str] = []
    for cache, source in zip(caches, sources, strict=True):
        try:
            kept = read_cache_record(cache)
            found.append(kept if kept.state == redacted_state(source) else f"{source} has changed since")
        except FileNotFoundError:
            found.append(f"nothing is kept of {source}, or of it under other options")
        except (OSError, RecordError) as error:
            found.append(f"{cache.record_path} {error}")
    checked = {
        str(path): path
        for cache, record in zip(caches, found, strict=True)
        if isinstance(record, CacheRecord)
        for path in cache.paths[:-1]
    }
    digests = tree_digests(checked)
    for place, (cache, record) in enumerate(zip(caches, found, strict=True)):
        if isinstance(record, CacheRecord):
            damaged = [str(path) for path in cache.paths[:-1] if digests[str(path)] != record.digests.get(_kind(path))]
            if damaged:
                found[place] = f"{damaged[0]} is missing, or was changed since it was written"
    return found


def damaged_caches(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file of a directory's caches that is not what it was, and what is wrong with it. Cost: reads all."""
    if not directory.is_dir():
        yield directory, "no documents are there"
        return
    for path in sorted(directory.glob("*.json")):
        cache = TokenCache(directory, path.stem)
        try:
            record = read_cache_record(cache)
        except (OSError, RecordError) as error:
            yield path, str(error)
            continue
        digests = tree_digests({_kind(file): file for file in cache.paths[:-1]})
        for file in cache.paths[:-1]:
            if digests[_kind(file)] != record.digests.get(_kind(file)):
                yield file, "is missing, or was changed since it was written"


def write_cache(
    cache: TokenCache, source: Source, options: Options, entries: Iterable[Sample | Issue], fields_seen: dict[str, int]
) -> CacheRecord:
    """Write the cache from its samples and issues, in order; memory: about 65,536 rows of the index.

    Args:
        fields_seen: for the record; it may be counted while the entries come.

    Raises:
        InputError: the source changed while it was read.
        OSError: the disk is full, or fails; nothing is committed.
    """
    state = source.state()
    # An old record may not outlive its files: the source could later be put back to the state that it names.
    cache.record_path.unlink(missing_ok=True)
    issues: Counter[str] = Counter()
    with ExitStack() as stack:
        tokens_file = stack.enter_context(_open_replacing(cache.tokens_path))
        issues_file = stack.enter_context(_open_replacing(cache.issues_path))
        index_path = stack.enter_context(replacing(cache.index_path))
        index = stack.enter_context(_IndexWriter(index_path))
        tokens_sha256 = hashlib.sha256()
        for entry in entries:
            if isinstance(entry, Issue):
                issues[entry.kind] += 1
                issues_file.write(entry.to_line().encode("ascii"))
                continue
            tokens = entry.tokens.astype(options.dtype).tobytes()
            tokens_file.write(tokens)
            tokens_sha256.update(tokens)
            index.add(entry)
    if source.state() != state:
        raise InputError(
            subject=str(source), must="stay as it is while it is read", got="but changed", do="start again"
        )
    digests = tree_digests({str(path): path for path in cache.paths[:-1]})
    record = CacheRecord(
        source=str(source),
        format=source.format,
        options=options.fingerprint(),
        state=state,
        num_samples=index.num_samples,
        num_tokens=index.num_tokens,
        incidents=dict(sorted(issues.items())),
        tokens_sha256=tokens_sha256.hexdigest(),
        index_sha256=index.sha256.hexdigest(),
        digests={_kind(path): str(digests[str(path)]) for path in cache.paths[:-1]},
        fields_seen=fields_seen,
    )
    write_record(cache.record_path, asdict(record))
    return record


def remove_unknown(directory: Path, caches: Iterable[TokenCache]) -> None:
    """Remove caches other than these, and temporaries; files that no cache could own stay."""
    keys = {cache.key for cache in caches}
    for path in directory.iterdir():
        name = _OURS.fullmatch(path.name)
        if name and (name[1] not in keys or path.name.endswith(TEMPORARY_SUFFIX)):
            path.unlink()


def read_index(cache: TokenCache, record: CacheRecord) -> pa.Table:
    """Return the cache's index, with the domains dictionary-encoded.

    Raises:
        RecordError: it does not go with its record, which can only be where both were forged.
    """
    table = read_parquet(cache.index_path, dictionaries=["domain"])
    types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in table.schema.types]
    if table.schema.names != _SCHEMA.names or types != _SCHEMA.types or table.num_rows != record.num_samples:
        raise RecordError(f"{cache.index_path} must have {record.num_samples} rows of {', '.join(_SCHEMA.names)}")
    lengths, prompts, offsets = (table[name].to_numpy() for name in ("num_tokens", "num_prompt", "offset"))
    ends = np.cumsum(lengths)
    if len(lengths) and not (
        (lengths >= 2).all()
        and ((prompts >= 0) & (prompts < lengths)).all()
        and np.array_equal(offsets, ends - lengths)
        and ends[-1] == record.num_tokens
    ):
        raise RecordError(f"{cache.index_path} must say where each document's tokens lie, end to end, but does not")
    return table


class _IndexWriter:
    """Writer of <key>.parquet in bounded memory, which hashes what identifies its samples."""

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


def _kind(path: Path) -> str:
    return path.name.partition(".")[2]
