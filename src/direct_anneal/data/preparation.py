"""One pass over the sources: a token cache for each, put together into a corpus; reopened without reading them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from direct_anneal.config.names import corpus_name
from direct_anneal.data.corpus import Corpus, assemble
from direct_anneal.data.documents import tokenized_documents
from direct_anneal.data.field_checks import nothing_usable
from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import FORMATS
from direct_anneal.data.shared_caches import Item, SharedCaches
from direct_anneal.data.sources import Source, anywhere
from direct_anneal.data.special_tokens import TextTokenizer, TokenizerLike, text_tokenizer
from direct_anneal.data.token_cache import (
    CacheRecord,
    Options,
    TokenCache,
    cache_of,
    remove_unknown,
    reusable_records,
    write_cache,
)
from direct_anneal.errors import InputError
from direct_anneal.io.processes import each, num_cores
from direct_anneal.io.redaction import redacted
from direct_anneal.progress import current_progress

ISSUES_FILE = "incidents.jsonl"

_BYTES_FOR_PROCESSES = 2**26  # of sources; a process takes seconds to begin
_LOOK_SECONDS = 2.0  # between looks at what other jobs are about


class Elsewhere(Protocol):
    """A `map` whose calls are made on other machines."""

    def __call__(
        self, function: Callable[[Item], CacheRecord | str], items: Iterable[Item], /
    ) -> Iterable[CacheRecord | str]:
        """Yield the function of each item, in order."""


def prepare(
    sources: Sequence[Source],
    *,
    role: str,
    fields: Fields,
    load_tokenizer: Callable[[], TokenizerLike],
    tokenizer_fingerprint: str,
    vocab_size: int,
    max_length: int,
    directory: Path,
    advance: Callable[[int], object] = lambda _: None,
    workers: int = 1,
    shared: SharedCaches | None = None,
    elsewhere: Elsewhere | None = None,
) -> Corpus:
    """Turn the sources into tokens and an index under `directory`, one cache a source, and put them together.

    A record's text is tokenised; without one its `input_ids` are used as they are. Where `fields.prompt` is set and the
    record has it, that comes before: text before text, with nothing put between, tokens before tokens. Prompt and text
    are tokenised as one, since that is what a trainer does; the prompt's are those leading tokens that it also has when
    it is tokenised alone, so that a token over the boundary is predicted, and no special token comes in between.
    Caches that an earlier call finished are used again if their source and the options are unchanged; the directory's
    other caches are removed.
    A record's id is its own if that is a string or an integer, else source:row; of equal ids, in whichever files, the
    first stays and the others become id@source:row. Its domain is its own or the file's name without extensions.
    Cost: one read of the changed sources, 2 or 4 bytes of disk a token; memory a batch of documents, and O(N).

    Args:
        sources: from `expand`; their order is the corpus's.
        role: what the corpus is for ("pool", "validation"), for the messages.
        load_tokenizer: called at most once, and only if there is text to tokenise.
        tokenizer_fingerprint: changes when the tokenizer would give other tokens.
        vocab_size: tokens must lie in [0, vocab_size).
        max_length: documents with more tokens are noted as "over-long" and stored whole.
        directory: for this corpus alone.
        advance: called with the number of records read since its last call.
        workers: processes that read and tokenise; the bytes are the same. Each has a source at a time.
        shared: with jobs that prepare the same sources, each of which then reads a part of them.
        elsewhere: makes what it can on other machines, which see `directory`; then the tokenizer is loaded there.

    Raises:
        InputError: no sample is usable; a file is damaged beyond skipping, or changed while it was read.
        OSError: the disk is full, or fails; finished caches stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    options = Options(
        fields=fields, vocab_size=vocab_size, max_length=max_length, tokenizer_fingerprint=tokenizer_fingerprint
    )
    caches = [cache_of(source, options, directory) for source in sources]
    made: dict[TokenCache, CacheRecord] = {}
    missing: list[Item] = []
    for source, cache, kept in zip(sources, caches, reusable_records(caches, sources), strict=True):
        if isinstance(kept, CacheRecord):
            made[cache] = replace(kept, fields_seen=_as_named(kept.fields_seen, fields))
            advance(made[cache].num_records)
        else:
            missing.append((source, cache))
    write = _Writer(options, functools.partial(text_tokenizer, load_tokenizer, fields.special_tokens), shared)
    if elsewhere is not None and missing:
        made |= _made_elsewhere(elsewhere, missing, write, advance)
        missing = [item for item in missing if item[1] not in made]
    made |= _made_here(missing, write, advance, workers)
    records = [made[cache] for cache in caches]
    if not any(record.num_samples for record in records):
        raise InputError(nothing_usable(sources, records, role, fields))
    corpus = assemble(sources, caches, records, options, directory)
    corpus.issues.write(directory / ISSUES_FILE)
    remove_unknown(directory, caches)
    return corpus


def readers_of(sources: Sequence[Source], *, trust_remote_code: bool) -> int:
    """Return the number of processes to prepare these with: one a core, if that is worth it and nothing is fetched."""
    here = all(source.remote is None for source in sources)
    return num_cores() if here and is_divisible(sources, trust_remote_code=trust_remote_code) else 1


def is_divisible(sources: Sequence[Source], *, trust_remote_code: bool) -> bool:
    """True if other processes can prepare these, and there is enough to read.

    They cannot where they need not have what it takes: formats from outside this package, a checkpoint's own code.
    """
    ours = all(type(FORMATS[source.format]).__module__.startswith("direct_anneal.") for source in sources)
    if not ours or trust_remote_code or len(sources) < 2:
        return False
    return sum(size for source in sources for _, size, *_ in source.state()) >= _BYTES_FOR_PROCESSES


@dataclass(frozen=True)
class _Writer:
    """Writes the cache of a source, in whichever process."""

    options: Options
    load: Callable[[], TextTokenizer]
    shared: SharedCaches | None

    def __call__(
        self, item: Item, tokenizer: Callable[[], TextTokenizer], advance: Callable[[int], object]
    ) -> CacheRecord | None:
        """Write it; None if another job does."""

        def make() -> CacheRecord:
            seen = dict.fromkeys((name for names in self.options.fields.named().values() for name in names), 0)
            entries = tokenized_documents(item[0], self.options, tokenizer, advance, seen)
            return write_cache(item[1], item[0], self.options, entries, seen)

        return make() if self.shared is None else self.shared.make(item[1], make)


def _made_here(
    missing: Sequence[Item], write: _Writer, advance: Callable[[int], object], workers: int
) -> dict[TokenCache, CacheRecord]:
    """Return the records of these, made by processes of this machine or by other jobs."""
    made: dict[TokenCache, CacheRecord] = {}
    tokenizer = functools.cache(write.load)

    def done(item: Item, record: CacheRecord | None) -> None:
        if record is not None:
            made[item[1]] = record
            advance(record.num_records)

    waits = False
    while left := [item for item in missing if item[1] not in made]:
        num_made = len(made)
        if write.shared is not None:
            for item, record in write.shared.found(left):
                done(item, replace(record, fields_seen=_as_named(record.fields_seen, write.options.fields)))
            left = write.shared.in_turn([item for item in left if item[1] not in made])
        if workers == 1 or len(left) < 2:
            for item in left:
                if (written := write(item, tokenizer, advance)) is not None:
                    made[item[1]] = written
        else:
            each(_write_in_process, left, (write,), workers, done)
        if len(made) == num_made:
            if not waits:
                current_progress().note(f"waiting for other jobs to read {left[0][0]} and {len(left) - 1} other files")
            waits = True
            time.sleep(_LOOK_SECONDS)
    return made


def _made_elsewhere(
    elsewhere: Elsewhere, missing: Sequence[Item], write: _Writer, advance: Callable[[int], object]
) -> dict[TokenCache, CacheRecord]:
    """Return the records of those that other machines have made and that lie here now; says why others are not."""
    made, why = {}, ""
    there = [(anywhere(source), TokenCache(cache.directory.absolute(), cache.key)) for source, cache in missing]
    records = elsewhere(functools.partial(_write_elsewhere, write=write), there)
    for (source, cache), record in zip(missing, records, strict=True):
        if isinstance(record, CacheRecord):
            [kept] = reusable_records([cache], [source])
            if isinstance(kept, CacheRecord) and kept.digests == record.digests:
                made[cache] = record
                advance(record.num_records)
                continue
            record = f"what was written there is not here ({kept})" if isinstance(kept, str) else "another was written"
        why = why or record
    if why:
        rest = len(missing) - len(made)
        current_progress().note(f"{rest} of {len(missing)} files are read here, for workers could not: {why}")
    return made


def _write_elsewhere(item: Item, write: _Writer) -> CacheRecord | str:
    """Write a cache on another machine, or say why that cannot be done there."""
    if not item[1].directory.is_dir():
        return f"{item[1].directory} is not there"
    try:
        record = _write_in_process(item, write)
    except (InputError, OSError) as error:
        return " ".join(str(error).split())
    assert record is not None  # nobody else writes there
    return record


def _write_in_process(item: Item, write: _Writer) -> CacheRecord | None:
    """Write a cache in a process that keeps the tokenizer from one source to the next."""
    key = write.options.fingerprint()
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = functools.cache(write.load)
    return write(item, _loaded[key], lambda _: None)


_loaded: dict[str, Callable[[], TextTokenizer]] = {}


def reopen(
    sources: Sequence[Source],
    *,
    role: str,
    fields: Fields,
    tokenizer_fingerprint: str,
    vocab_size: int,
    max_length: int,
    directory: Path,
    fingerprint: str,
) -> Corpus:
    """Return the corpus that `prepare` left in `directory`, without reading a document or writing a byte. Arguments as
    there.

    Args:
        fingerprint: of the corpus that is expected.

    Raises:
        InputError: sources or options have changed since, or what was left is damaged.

    Cost: reads tokens and index once, in threads, to see that they are what was written.
    """
    options = Options(
        fields=fields, vocab_size=vocab_size, max_length=max_length, tokenizer_fingerprint=tokenizer_fingerprint
    )
    caches = [cache_of(source, options, directory) for source in sources]
    kept = reusable_records(caches, sources)
    records = [record for record in kept if isinstance(record, CacheRecord)]
    wrong = next((why for why in kept if isinstance(why, str)), "other files are named now")
    if len(records) == len(kept):
        try:
            corpus = assemble(sources, caches, records, options, directory)
        except (OSError, ValueError, KeyError, TypeError) as error:  # another process writes there
            wrong = " ".join(str(error).split())
        else:
            if corpus.fingerprint == fingerprint:
                return corpus
    raise InputError(
        subject=f"the {corpus_name(role)}",
        must="be as it was when its features were computed",
        got=f"but files, tokenizer, options or the working directory, which names are relative to, have changed, or "
        f"{directory} is damaged or of an earlier version ({wrong})",
        do="go where select was run, or run it there again: it makes anew what is amiss, and keeps features that fit",
    )


def _as_named(seen: dict[str, int] | None, fields: Fields) -> dict[str, int] | None:
    """Return counts by the names of fields as they are: a record holds them without secrets."""
    if seen is None:
        return None
    names = [name for names in fields.named().values() for name in names]
    return {name: seen[redacted(name)] for name in names if redacted(name) in seen}
