"""Text of any origin as people can read it on a page: cut, and with nothing in it that is there and cannot be seen."""

from __future__ import annotations

# Marks and overrides of writing direction: with them a text can show other than it reads.
_DIRECTION = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def legible(text: str, limit: int | None = None) -> str:
    r"""The text with control characters shown as signs for them, and cut at `limit` characters.

    >>> legible("a\x00b\u202ec\n", limit=8)
    'a␀b⟨U+202E⟩c\n'
    >>> legible("one line of many", limit=8)
    'one line…'
    """
    cut = text if limit is None else text[:limit]
    shown = "".join(map(_sign, cut))
    return shown if len(cut) == len(text) else shown + "…"


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return character if character in "\n\t" else chr(0x2400 + code)
    is_hidden = 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in _DIRECTION or code & 0xFFFE == 0xFFFE
    return f"⟨U+{code:04X}⟩" if is_hidden or code == 0xFEFF else character
