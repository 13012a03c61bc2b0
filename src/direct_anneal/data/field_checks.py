"""Checks that the fields that were named are there, with the fields that are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from direct_anneal.config.names import corpus_name
from direct_anneal.data.corpus import Corpus
from direct_anneal.data.fields import Fields, names_in, quoted
from direct_anneal.data.sources import Source
from direct_anneal.data.token_cache import CacheRecord
from direct_anneal.errors import InputError, flag
from direct_anneal.errors import option as named

_INSTEAD = {"domain_field": "; its file names are used", "id_field": "; its documents are called file:row"}
_FIELDS_TOLD = 40


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
                got=f"but none has {quoted(names)}",
                do=f"take one of {', '.join(there[:_FIELDS_TOLD])}, or leave the option out",
            )
        instead = _INSTEAD.get(option, "")
        remarks += [
            f"{role}: no record has {quoted(names)} ({flag(option)}){instead}"
            for role in lacking
            if (role, option) != ("pool", "prompt_field")  # a pool of plain text is what prompts are used with
        ]
        never = [name for name in names if not any(seen.get(name) for seen in known.values())]
        if never:
            remarks.append(f"no record has {quoted(never)}, one of the names of {flag(option)}")
    return remarks


def nothing_usable(sources: Sequence[Source], records: Sequence[CacheRecord], role: str, fields: Fields) -> str:
    """Say that no document can be used, why, and which fields there are."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.incidents)
    happened = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "all files are empty"
    message = (
        f"the {corpus_name(role)} must hold at least one usable sample, but none of "
        f"{sum(record.num_records for record in records)} records in {len(records)} sources can be used ({happened})"
    )
    if counts["no-text"]:
        names = ", ".join(fields_there(sources)) or "no fields"
        wrong = quoted(fields.text)
        return (
            f"{message}: no record has {wrong}; name the field that holds the text with {named('text_field')}; "
            f"the first record has {names}"
        )
    return f"{message}: check the files"


def fields_there(sources: Sequence[Source]) -> list[str]:
    """Return the fields of the first record that can be read, those within objects with dots."""
    readable = (record for source in sources for _, record in source.records() if isinstance(record, Mapping))
    return list(names_in(next(readable, {})))
