"""Text of any origin, made safe to show: nothing in it commands a terminal or hides from the reader."""

from __future__ import annotations

import re
from typing import Any, TextIO

from direct_anneal.io.redaction import redacted

# Control characters (C0 but newline and tab, DEL, C1); halves of surrogate pairs; marks and overrides of writing
# direction, with which a text can show other than it reads; the byte order mark and what is no character.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def sanitized(text: str, limit: int | None = None) -> str:
    r"""Return the text with control characters shown as signs for them, and cut at `limit` characters.

    >>> sanitized("a\x00b\u202ec\n", limit=8)
    'a␀b⟨U+202E⟩c\n'
    >>> sanitized("one line of many", limit=8)
    'one line…'
    """
    shown = _HIDDEN.sub(_sign, text if limit is None else text[:limit])
    return shown if limit is None or len(text) <= limit else shown + "…"


def sanitized_json(text: str) -> str:
    """Escape the same characters as JSON does, so that a reader finds them and a terminal does not."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class SanitizedStream:
    """A stream that sanitizes what is written and takes secrets out; on a terminal colours pass.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._coloured = stream.isatty()

    def write(self, text: str) -> int:
        """Write it; returns the length of what was given."""
        text, given = redacted(text), len(text)
        if self._coloured:
            colours = _COLOUR.findall(text)
            parts = [sanitized(part) for part in _COLOUR.split(text)]
            text = parts[0] + "".join(colour + part for colour, part in zip(colours, parts[1:], strict=True))
        else:
            text = sanitized(text)
        self._stream.write(text)
        return given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
