"""What the fields of a record are called: the names may differ from source to source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Names = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which fields of a record hold the text, its id and its domain; the last two may be missing from the data.

    What `prompt` names, if anything, holds what precedes the text and is not to be predicted. Each may have several
    names: then it is the first of them that a record has (null is as good as missing), whichever source it is from.
    """

    text: Names = "text"
    id: Names = "id"
    domain: Names = "domain"
    prompt: Names | None = None


def listed(names: Names | None) -> tuple[str, ...]:
    """One by one, in the order in which a record is asked for them."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def value_of(record: Mapping[str, Any], names: Names | None) -> Any:
    """What the first of these fields that the record has holds; None where it has none.

    >>> value_of({"text": None, "content": "a tree"}, ("text", "content"))
    'a tree'
    """
    return next((value for name in listed(names) if (value := record.get(name)) is not None), None)


def told(names: Names | None) -> str:
    """For messages.

    >>> told(("text", "content"))
    "'text' or 'content'"
    """
    return " or ".join(map(repr, listed(names)))
