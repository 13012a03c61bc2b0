"""One pass over the sources: text becomes tokens on disk, everything odd becomes an issue."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from direct_anneal.data.corpus import Corpus, assemble
from direct_anneal.data.fields import TOKENS_FIELD, Fields, names_in, told, value_at, value_of
from direct_anneal.data.formats import FORMATS
from direct_anneal.data.issues import Issue
from direct_anneal.data.sources import BadRecord, Source
from direct_anneal.data.special_tokens import TextTokenizer, TokenizerLike, text_tokenizer
from direct_anneal.data.token_cache import (
    CacheRecord,
    Options,
    Sample,
    TokenCache,
    cache_of,
    remove_strangers,
    reusable_records,
    write_cache,
)
from direct_anneal.errors import InputError, flag
from direct_anneal.errors import option as named
from direct_anneal.io.processes import each, num_cores
from direct_anneal.io.redaction import redacted

ISSUES_FILE = "incidents.jsonl"

_BATCH_DOCUMENTS = 256
_FIELDS_TOLD = 40
_BYTES_FOR_PROCESSES = 2**26  # of sources; a process takes seconds to begin
_BATCH_CHARACTERS = 4 * 2**20


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
    Pieces that an earlier call finished are used again if their source and the options are unchanged; the directory's
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
            made[cache] = _cache(source, cache, options, tokenizer, advance)
    else:

        def done(item: tuple[Source, TokenCache], record: CacheRecord) -> None:
            made[item[1]] = record
            advance(record.num_records)

        each(_cache_in_process, missing, (options, load), workers, done)
    records = [made[cache] for cache in caches]
    if not any(record.num_samples for record in records):
        raise InputError(_nothing_usable(sources, records, role, fields))
    corpus = assemble(sources, caches, records, options, directory)
    corpus.issues.write(directory / ISSUES_FILE)
    remove_strangers(directory, caches)
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


def _cache(
    source: Source,
    cache: TokenCache,
    options: Options,
    tokenizer: Callable[[], TextTokenizer],
    advance: Callable[[int], object],
) -> CacheRecord:
    seen = dict.fromkeys((name for names in options.fields.named().values() for name in names), 0)
    return write_cache(cache, source, options, _entries(source, options, tokenizer, advance, seen), seen)


def _cache_in_process(
    item: tuple[Source, TokenCache], options: Options, tokenizer: Callable[[], TextTokenizer]
) -> CacheRecord:
    """The same in a process of its own, which keeps the tokenizer from one source to the next."""
    if not _loaded:
        _loaded.append(functools.cache(tokenizer))
    return _cache(*item, options, _loaded[0], lambda _: None)


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
        subject=f"the {role}",
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


@dataclass(frozen=True, kw_only=True)
class _Document:
    row: int
    id: str | None
    strange_id: str | None  # the type of an id that is neither a string nor an integer
    domain: str
    text: str | None
    tokens: Any  # without text: whatever the record holds for them
    prompt: Any  # a string before text, whatever the record holds before tokens; None without one


def _entries(
    source: Source,
    options: Options,
    tokenizer: Callable[[], TextTokenizer],
    advance: Callable[[int], object],
    seen: dict[str, int],
) -> Iterator[Sample | Issue]:
    fields = options.fields
    pending: list[_Document | Issue] = []
    num_characters = 0
    for row, record in source.records(fields.columns):
        if isinstance(record, Mapping):
            for name in seen:
                seen[name] += value_at(record, name) is not None
        entry = _document(source, row, record, fields)
        pending.append(entry)
        if isinstance(entry, _Document) and entry.text is not None:
            num_characters += len(entry.text) + len(entry.prompt or "")
        if len(pending) == _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield from _finished(pending, source, options, tokenizer)
            advance(len(pending))
            pending, num_characters = [], 0
    yield from _finished(pending, source, options, tokenizer)
    advance(len(pending))


def _document(source: Source, row: int, record: Mapping[str, Any] | BadRecord, fields: Fields) -> _Document | Issue:
    if isinstance(record, BadRecord):
        return Issue(kind=record.kind, source=str(source), row=row, detail=record.reason)
    text, tokens = value_of(record, fields.text), record.get(TOKENS_FIELD)
    if not isinstance(text, str):
        text = None
    if text is None and tokens is None:
        detail = f"neither a string in {told(fields.text)} nor tokens in {TOKENS_FIELD!r}"
        return Issue(kind="no-text", source=str(source), row=row, detail=detail)
    prompt = value_of(record, fields.prompt)
    if prompt is not None and isinstance(prompt, str) != (text is not None):
        wanted = "a string, as the text is" if text is not None else "tokens, as the document is"
        detail = f"{told(fields.prompt)} must hold {wanted}, but holds {type(prompt).__name__}"
        return Issue(kind="bad-prompt", source=str(source), row=row, detail=detail)
    if prompt is not None and text is not None and not text.strip():
        detail = f"a prompt of {len(prompt)} characters, and nothing after it"
        return Issue(kind="nothing-to-predict", source=str(source), row=row, detail=detail)
    if text is not None and not text.strip():
        detail = f"nothing but white space, {len(text)} characters"
        return Issue(kind="empty-text", source=str(source), row=row, detail=detail)
    name, domain = value_of(record, fields.id), value_of(record, fields.domain)
    is_name = isinstance(name, str | int) and not isinstance(name, bool)
    return _Document(
        row=row,
        id=str(name) if is_name else None,
        strange_id=None if is_name or name is None else type(name).__name__,
        domain=source.stem if domain is None else str(domain),
        text=text,
        tokens=tokens,
        prompt=prompt,
    )


def _finished(
    pending: list[_Document | Issue], source: Source, options: Options, tokenizer: Callable[[], TextTokenizer]
) -> Iterator[Sample | Issue]:
    if options.fields.special_tokens == "drop":
        pending = [_dropped(entry, source, tokenizer) for entry in pending]
    documents = [entry for entry in pending if isinstance(entry, _Document)]
    tokenized = _tokenized(documents, options.vocab_size, tokenizer)
    for entry in pending:
        if isinstance(entry, Issue):
            yield entry
            continue
        outcome = next(tokenized)
        if isinstance(outcome, str):
            yield Issue(kind="bad-tokens", source=str(source), row=entry.row, detail=outcome)
            continue
        tokens, num_prompt = outcome
        if len(tokens) < 2:
            detail = f"{len(tokens)} tokens, and at least 2 are needed to predict one"
            yield Issue(kind="too-short", source=str(source), row=entry.row, detail=detail)
        elif not _predicts(len(tokens), num_prompt, options.max_length):
            detail = f"{num_prompt} of {len(tokens)} tokens are the prompt's, and none after them can be predicted"
            yield Issue(kind="nothing-to-predict", source=str(source), row=entry.row, detail=detail)
        else:
            yield Sample(row=entry.row, id=entry.id, domain=entry.domain, tokens=tokens, num_prompt=num_prompt)
            if entry.text is not None and (told_special := tokenizer().within((entry.prompt or "") + entry.text)):
                how = "as text" if options.fields.special_tokens == "text" else "as the tokens"
                detail = f"special tokens in the text, read {how}: {told_special}"
                yield Issue(kind="special-tokens", source=str(source), row=entry.row, detail=detail)
            if entry.strange_id is not None:
                detail = f"an id that is neither a string nor an integer but {entry.strange_id}: named by its place"
                yield Issue(kind="odd-id", source=str(source), row=entry.row, detail=detail)
            if options.fields.prompt and entry.prompt is None:
                detail = f"nothing in {told(options.fields.prompt)}: kept, and predicted whole"
                yield Issue(kind="no-prompt", source=str(source), row=entry.row, detail=detail)
            if len(tokens) > options.max_length:
                detail = f"{len(tokens)} tokens, more than {options.max_length}: kept, to be split into windows"
                yield Issue(kind="over-long", source=str(source), row=entry.row, detail=detail)


def _dropped(entry: _Document | Issue, source: Source, tokenizer: Callable[[], TextTokenizer]) -> _Document | Issue:
    if isinstance(entry, Issue) or entry.text is None:
        return entry
    found = tokenizer().within((entry.prompt or "") + entry.text)
    detail = f"special tokens in the text: {found}"
    return Issue(kind="special-dropped", source=str(source), row=entry.row, detail=detail) if found else entry


def _tokenized(
    documents: list[_Document], vocab_size: int, tokenizer: Callable[[], TextTokenizer]
) -> Iterator[tuple[np.ndarray, int] | str]:
    """Return each document's tokens, (T,) int64, with the number of its prompt's; or what is wrong with them."""
    texts = [(document.prompt or "") + document.text for document in documents if document.text is not None]
    prompts = [document.prompt for document in documents if document.text is not None and document.prompt is not None]
    whole = iter(tokenizer()(texts) if texts else ())
    alone = iter(tokenizer()(prompts) if prompts else ())
    for document in documents:
        tokens = _checked(document.tokens if document.text is None else next(whole), vocab_size)
        prompt: np.ndarray | str = np.empty(0, dtype=np.int64)
        if document.prompt is not None:
            prompt = _checked(document.prompt if document.text is None else next(alone), vocab_size)
        if isinstance(tokens, str) or isinstance(prompt, str):
            yield tokens if isinstance(tokens, str) else f"in the prompt: {prompt}"
        elif document.text is None:
            yield np.concatenate([prompt, tokens]), len(prompt)
        else:
            yield tokens, _num_shared(prompt, tokens)


def _num_shared(prompt: np.ndarray, tokens: np.ndarray) -> int:
    """Count the leading tokens that are the same."""
    length = min(len(prompt), len(tokens))
    differing = np.flatnonzero(prompt[:length] != tokens[:length])
    return int(differing[0]) if len(differing) else length


def _predicts(num_tokens: int, num_prompt: int, max_length: int) -> bool:
    """True if any token is predicted: none of the prompt, and none that begins a window, is."""
    first = max(1, num_prompt)
    return first < num_tokens - (first % max_length == 0)


def _checked(raw: Any, vocab_size: int) -> np.ndarray | str:
    """Return the tokens, (T,) int64, or what is wrong with them."""
    if isinstance(raw, list):
        # numpy would take True for 1 and round floats silently.
        if not {*map(type, raw)} <= {int}:
            return "not a list of integers"
        try:
            raw = np.array(raw, dtype=np.int64)
        except OverflowError:
            return f"a token lies outside the vocabulary of {vocab_size}"
    if not isinstance(raw, np.ndarray) or raw.dtype.kind not in "iu":
        return "not a list of integers"
    if raw.size and (raw.min() < 0 or raw.max() >= vocab_size):
        return f"tokens from {raw.min()} to {raw.max()} do not fit the vocabulary of {vocab_size}"
    return raw.astype(np.int64, copy=False)


def _nothing_usable(sources: Sequence[Source], records: Sequence[CacheRecord], role: str, fields: Fields) -> str:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.incidents)
    happened = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "all files are empty"
    message = (
        f"the {role} must hold at least one usable sample, but of {sum(record.num_records for record in records)} "
        f"records in {len(records)} sources none is ({happened})"
    )
    if counts["no-text"]:
        names = ", ".join(fields_there(sources)) or "no fields"
        wrong = told(fields.text)
        return (
            f"{message}: no record has {wrong}; name the field that holds the text with {named('text_field')}; "
            f"the first record has {names}"
        )
    return f"{message}: check the files"


def fields_there(sources: Sequence[Source]) -> list[str]:
    """Return the fields of the first record that can be read, those within objects with dots."""
    readable = (record for source in sources for _, record in source.records() if isinstance(record, Mapping))
    return list(names_in(next(readable, {})))


def check_fields(fields: Fields, corpora: Mapping[str, Corpus]) -> list[str]:
    """Make sure that every field that was named is in some record.

    Args:
        corpora: what was read, by role.

    Returns:
        A remark for each name that some record has, but none of one corpus.

    Raises:
        InputError: an option's names are in no record of any of them; lists the fields there are.
    """
    remarks = []
    known = {role: corpus.fields_seen for role, corpus in corpora.items() if corpus.fields_seen is not None}
    for option, names in fields.named().items() if len(known) == len(corpora) else ():
        lacking = [role for role, seen in known.items() if not any(seen.get(name) for name in names)]
        if len(lacking) == len(known):
            there = list(dict.fromkeys(name for corpus in corpora.values() for name in fields_there(corpus.sources)))
            raise InputError(
                field=option,
                must="name a field that some record has",
                got=f"but none has {told(names)}",
                do=f"take one of {', '.join(there[:_FIELDS_TOLD])}, or leave the option out",
            )
        instead = "; its file names are used" if option == "domain_field" else ""
        remarks += [f"{role}: no record has {told(names)} ({flag(option)}){instead}" for role in lacking]
        never = [name for name in names if not any(seen.get(name) for seen in known.values())]
        if never:
            remarks.append(f"no record has {told(never)}, one of the names of {flag(option)}")
    return remarks
