"""Secrets out of what is written and printed: credentials in addresses, tokens, and what the environment holds.

A run's records are passed on to colleagues, issues and the like; a token in them is a token lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

HIDDEN = "***"

T = TypeVar("T")

_ADDRESS = re.compile(r"(?<=://)[^/@\s\"']+@")
_PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:token|secret|password|signature|credential|api[_-]?key|access[_-]?key(?:id)?)|sig)=)[^&\s\"']+"
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|glpat-[\w-]{20,})"
)
_SECRET_NAME = re.compile(r"(?i)(token|secret|password|passwd|credential|api_?key|access_?key)")
_SHORTEST = 12  # of a value in the environment: "1" or "false" is no secret, and occurs everywhere


def redacted(content: T) -> T:
    """The same text, or the same lists and mappings of texts, with `***` in place of every secret.

    Secrets are: user and password in an address (scheme://user:password@host), parameters of an address that are
    named as tokens, keys or signatures are, tokens in the forms of well-known services, and the values of
    environment variables that are named as secrets are.

    >>> redacted({"model": "s3://key:secret@bucket/ckpt", "seed": 0})
    {'model': 's3://***@bucket/ckpt', 'seed': 0}
    """
    held = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and not os.path.exists(value)  # noqa: PTH110
    ]
    found: T = _redacted(content, sorted(held, key=len, reverse=True))
    return found


def _redacted(content: Any, held: list[str]) -> Any:
    if isinstance(content, str):
        for value in held:
            content = content.replace(value, HIDDEN)
        content = _ADDRESS.sub(HIDDEN + "@", content)
        content = _PARAMETER.sub(r"\1" + HIDDEN, content)
        return _TOKEN.sub(HIDDEN, content)
    if isinstance(content, Mapping):
        return {_redacted(name, held): _redacted(value, held) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_redacted(value, held) for value in content]
    return content
