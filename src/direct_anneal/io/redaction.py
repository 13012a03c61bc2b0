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

# user:password@, in which the password may hold @ and /; what has a port in its place (host:8080/a@b) has no user.
_USER_AND_PASSWORD = re.compile(r"(?<=://)(?![^\s/@:]+:\d{1,5}/)[^\s/@:\"'<>]*:[^\s\"'<>]*@")
_USER = re.compile(r"(?<=://)[^/@\s\"'<>]+@")
_SECRET = (
    r"(?:token|secret|password|passwd|passphrase|pwd|signature|credential|auth|jwt"
    r"|api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key|private[_-]?key|storage[_-]?key|shared[_-]?key)"
)
_PARAMETER = re.compile(rf"(?i)([?&;](?:[\w.-]*{_SECRET}|sig|key|pass|sas)=)[^&\s\"';]+")
_ASSIGNED = re.compile(rf"(?i)(?<![\w-])((?:[\w.]*[_.-])?{_SECRET}[\"']?\s?[=:]\s?[\"']?)(?!\*\*\*)[^\s&;,\"']{{4,}}")
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=\S*[\d._~+/=-])[\w.~+/=-]{6,}")
_AUTHORIZATION = re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[^\s\"',]{4,}")
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}|AIza[\w-]{35}"
    r"|ya29\.[\w-]{20,}|(?:npm|dckr_pat)_[\w-]{20,}|pypi-[\w-]{40,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
)
_SECRET_NAME = re.compile(
    r"(?i)(token(?!iz|s$)|secret|password|passwd|passphrase|credential|signature|connection_?string|(?:^|_)(?:pass|pwd|auth|pin)$"
    r"|api_?key|access_?key|(?:^|_)key$|(?:^|_)key_)"
)
_PLAIN = frozenset({"true", "false", "none", "null", "auto", "default", "local", "disabled", "enabled", "unset"})
_SHORTEST = 4
_LONG = 12  # from here on a value is hidden inside words, too; a shorter one only where it stands by itself


def redacted(content: T) -> T:
    """Return the same text, or the same lists and mappings of texts, with `***` in place of every secret.

    Secrets are: user and password in an address (scheme://user:password@host), parameters of an address and
    assignments that are named as tokens, keys or signatures are, what follows "Bearer", tokens in the forms of
    well-known services, and the values of environment variables that are named as secrets are. Values of fewer than
    four characters, of digits alone, and words such as "true" are none.

    >>> redacted({"model": "s3://key:secret@bucket/ckpt", "seed": 0})
    {'model': 's3://***@bucket/ckpt', 'seed': 0}
    """
    found: T = _redacted(content, _held())
    return found


def _held() -> re.Pattern[str] | None:
    """Return a pattern for the environment's secrets, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and _SECRET_NAME.search(name)
        and value.lower() not in _PLAIN
        and not (len(value) < _LONG and value.isdigit())
        and not os.path.exists(value)  # noqa: PTH110
    }
    if not values:
        return None
    ordered = sorted(values, key=lambda value: (-len(value), value))
    return re.compile("|".join(_pattern(value) for value in ordered))


def _pattern(value: str) -> str:
    return re.escape(value) if len(value) >= _LONG else rf"(?<!\w){re.escape(value)}(?!\w)"


def _redacted(content: Any, held: re.Pattern[str] | None) -> Any:
    if isinstance(content, str):
        return _redacted_text(content, held)
    if isinstance(content, Mapping):
        return {_redacted(name, held): _redacted(value, held) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_redacted(value, held) for value in content]
    return content


def _redacted_text(text: str, held: re.Pattern[str] | None) -> str:
    if held is not None:
        text = held.sub(HIDDEN, text)
    if "://" in text:
        text = _USER.sub(HIDDEN + "@", _USER_AND_PASSWORD.sub(HIDDEN + "@", text))
    text = _TOKEN.sub(HIDDEN, text)
    if "=" in text or ":" in text:
        text = _PARAMETER.sub(r"\1" + HIDDEN, text)
        text = _AUTHORIZATION.sub(r"\1" + HIDDEN, text)
        text = _ASSIGNED.sub(r"\1" + HIDDEN, text)
    return _BEARER.sub(r"\1" + HIDDEN, text)
