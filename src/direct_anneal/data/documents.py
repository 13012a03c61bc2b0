"""From a record to a tokenised document, or to the issue that keeps it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from direct_anneal.data.fields import TOKENS_FIELD, Fields, quoted, value_at, value_of
from direct_anneal.data.issues import Issue
from direct_anneal.data.sources import BadRecord, Source
from direct_anneal.data.special_tokens import TextTokenizer
from direct_anneal.data.token_cache import Options, Sample

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Document:
    row: int
    id: str | None
    strange_id: str | None  # the type of an id that is neither a string nor an integer
    domain: str
    text: str | None
    tokens: Any  # without text: whatever the record holds for them
    prompt: Any  # a string before text, whatever the record holds before tokens; None without one


def tokenized_documents(
    source: Source,
    options: Options,
    tokenizer: Callable[[], TextTokenizer],
    advance: Callable[[int], object],
    seen: dict[str, int],
) -> Iterator[Sample | Issue]:
    """Read a source in batches: a sample for each document that can be used, an issue for whatever is amiss.

    Args:
        tokenizer: gives the tokenizer; called only if there is text.
        advance: called with the number of records read since its last call.
        seen: counts the records that have each of its fields.
    """
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
        detail = f"neither a string in {quoted(fields.text)} nor tokens in {TOKENS_FIELD!r}"
        return Issue(kind="no-text", source=str(source), row=row, detail=detail)
    prompt = value_of(record, fields.prompt)
    if prompt is not None and isinstance(prompt, str) != (text is not None):
        wanted = "a string, as the text is" if text is not None else "tokens, as the document is"
        detail = f"{quoted(fields.prompt)} must hold {wanted}, but holds {type(prompt).__name__}"
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
                detail = f"nothing in {quoted(options.fields.prompt)}: kept, and predicted whole"
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
            yield tokens, num_shared(prompt, tokens)


def num_shared(prompt: np.ndarray, tokens: np.ndarray) -> int:
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
