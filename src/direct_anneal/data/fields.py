"""Names of a record's fields, which may differ from source to source, and how its text is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from direct_anneal.config.names import SpecialTokens

Names = str | Sequence[str]

TOKENS_FIELD = "input_ids"

_DEEPEST = 8  # objects within objects, for a listing of fields


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of a record that hold the text, its id and its domain; the last two may be missing from the data.

    What `prompt` names, if anything, holds what precedes the text and is not to be predicted. Each may have several
    names: then it is the first of them that a record has (null is as good as missing), whichever source it is from.
    A name with dots reaches into objects: `metadata.domain`. A field whose own name has the dots comes first.

    `special_tokens` says what becomes of special tokens that stand in a text: "text" (letters as any other), "keep"
    (the tokens themselves) or "drop" (the document is left out).
    """

    text: Names = "text"
    id: Names = "id"
    domain: Names = "domain"
    prompt: Names | None = None
    special_tokens: SpecialTokens = "text"

    def named(self) -> dict[str, tuple[str, ...]]:
        """Return the options whose names are not the default ones, with these."""
        defaults = Fields()
        return {
            f"{role}_field": listed(getattr(self, role))
            for role in ("text", "id", "domain", "prompt")
            if listed(getattr(self, role)) != listed(getattr(defaults, role))
        }

    @property
    def columns(self) -> set[str]:
        """Every name that is asked for."""
        return {*listed(self.text), *listed(self.id), *listed(self.domain), *listed(self.prompt), TOKENS_FIELD}


def listed(names: Names | None) -> tuple[str, ...]:
    """Return the names one by one, in the order in which a record is asked for them."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def value_of(record: Mapping[str, Any], names: Names | None) -> Any:
    """Read the first of these fields that the record has; None where it has none.

    >>> value_of({"text": None, "content": "a tree"}, ("text", "content"))
    'a tree'
    >>> value_of({"data": {"text": "a tree"}}, "data.text")
    'a tree'
    """
    return next((value for name in listed(names) if (value := value_at(record, name)) is not None), None)


def value_at(record: Mapping[str, Any], name: str) -> Any:
    """Read one field, None where there is none; a dot leads into an object unless a field has it in its name.

    >>> value_at({"a.b": 1, "a": {"b": 2}}, "a.b")
    1
    """
    value = record.get(name)
    if value is not None or "." not in name:
        return value
    for place, mark in enumerate(name):
        if mark == "." and isinstance(inner := record.get(name[:place]), Mapping):
            value = value_at(inner, name[place + 1 :])
            if value is not None:
                return value
    return None


def names_in(record: Mapping[str, Any], depth: int = _DEEPEST) -> Iterator[str]:
    """Return every field of a record by its name, those within objects with dots.

    >>> list(names_in({"id": 1, "meta": {"domain": "web"}}))
    ['id', 'meta.domain']
    """
    for name, value in record.items():
        if isinstance(value, Mapping) and value and depth:
            yield from (f"{name}.{inner}" for inner in names_in(value, depth - 1))
        else:
            yield str(name)


def quoted(names: Names | None) -> str:
    """Return the names quoted and joined by "or", for messages.

    >>> quoted(("text", "content"))
    "'text' or 'content'"
    """
    return " or ".join(map(repr, listed(names)))
