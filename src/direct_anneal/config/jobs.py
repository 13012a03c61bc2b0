"""Jobs side by side, as a cluster's queue starts them."""

from __future__ import annotations

import re

from direct_anneal.errors import InputError


def job_of(shards: str) -> tuple[int, int]:
    """Return (I, N) from "I/N".

    Raises:
        InputError: it is no such text.

    >>> job_of("3/16")
    (3, 16)
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shards)
    if found is None or not int(found[1]) < int(found[2]):
        raise InputError(field="shards", must="be I/N with I from 0 to N - 1", got=shards, do="pass 0/16, for example")
    return int(found[1]), int(found[2])
