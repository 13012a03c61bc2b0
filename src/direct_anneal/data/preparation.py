"""One pass over the sources: a token cache for each, put together into a corpus; reopened without reading them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from direct_anneal.config.names import corpus_name
from direct_anneal.data.corpus import Corpus, assemble
from direct_anneal.data.documents import tokenized_documents
from direct_anneal.data.field_checks import nothing_usable
from direct_anneal.data.fields import Fields
from direct_anneal.data.formats import FORMATS
from direct_anneal.data.sources import Source
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

ISSUES_FILE = "incidents.jsonl"

_BYTES_FOR_PROCESSES = 2**26  # of sources; a process takes seconds to begin


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
    missing: list[tuple[Source, TokenCache]] = []
    for source, cache, kept in zip(sources, caches, reusable_records(caches, sources), strict=True):
        if isinstance(kept, CacheRecord):
            made[cache] = replace(kept, fields_seen=_as_named(kept.fields_seen, fields))
            advance(made[cache].num_records)
        else:
            missing.append((source, cache))
    load = functools.partial(text_tokenizer, load_tokenizer, fields.special_tokens)
    if workers == 1 or len(missing) < 2:
        tokenizer = functools.cache(load)
        for source, cache in missing:
            made[cache] = _write(source, cache, options, tokenizer, advance)
    else:

        def done(item: tuple[Source, TokenCache], record: CacheRecord) -> None:
            made[item[1]] = record
            advance(record.num_records)

        each(_write_in_process, missing, (options, load), workers, done)
    records = [made[cache] for cache in caches]
    if not any(record.num_samples for record in records):
        raise InputError(nothing_usable(sources, records, role, fields))
    corpus = assemble(sources, caches, records, options, directory)
    corpus.issues.write(directory / ISSUES_FILE)
    remove_unknown(directory, caches)
    return corpus


def readers_of(sources: Sequence[Source], *, trust_remote_code: bool) -> int:
    """Return the number of processes to prepare these with: one a core, where there is enough to read.

    One alone for what other processes need not have: files that are still elsewhere, formats from outside this package,
    and a checkpoint's own code.
    """
    ours = all(
        source.remote is None and type(FORMATS[source.format]).__module__.startswith("direct_anneal.")
        for source in sources
    )
    if not ours or trust_remote_code or len(sources) < 2:
        return 1
    much = sum(size for source in sources for _, size, *_ in source.state()) >= _BYTES_FOR_PROCESSES
    return num_cores() if much else 1


def _write(
    source: Source,
    cache: TokenCache,
    options: Options,
    tokenizer: Callable[[], TextTokenizer],
    advance: Callable[[int], object],
) -> CacheRecord:
    seen = dict.fromkeys((name for names in options.fields.named().values() for name in names), 0)
    return write_cache(cache, source, options, tokenized_documents(source, options, tokenizer, advance, seen), seen)


def _write_in_process(
    item: tuple[Source, TokenCache], options: Options, tokenizer: Callable[[], TextTokenizer]
) -> CacheRecord:
    """Write a cache in a process of its own, which keeps the tokenizer from one source to the next."""
    if not _loaded:
        _loaded.append(functools.cache(tokenizer))
    return _write(*item, options, _loaded[0], lambda _: None)


_loaded: list[Callable[[], TextTokenizer]] = []


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
