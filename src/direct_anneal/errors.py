"""The error that is the user's to mend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

_OPEN, _CLOSE = "\x0e", "\x0f"  # around an option's name inside a message: control characters that no text of ours has
_OPTION = re.compile(f"{_OPEN}([^{_CLOSE}]+){_CLOSE}")


def option(name: str) -> str:
    """Name an option inside a message, for each surface to spell: `budget_ratio` in Python, `--budget-ratio` as a flag.

    >>> str(InputError(field="elbow", must="be left out", got=0.9, do=f"{option('num_stiff')} stands in its place"))
    'elbow must be left out, got 0.9: num_stiff stands in its place'
    """
    return f"{_OPEN}{name}{_CLOSE}"


def flag(name: str) -> str:
    """Spell an option as the command line does."""
    return "--" + name.replace("_", "-")


def suggestion(word: object, known: Iterable[str]) -> str | None:
    """Name the nearest of the known words, if one is near.

    >>> suggestion("fracton", ["fraction", "out"])
    'did you mean fraction?'
    """
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6) if isinstance(word, str) else []
    return f"did you mean {near[0]}?" if near else None


_MOST_SHOWN = 160  # characters of a value that arrived


class InputError(ValueError):
    """An input or request that cannot be used.

    The message is one line: what must hold, what arrived, what to do. The command line prints it without a
    traceback and exits with code 2; nothing that was computed before is lost.

    Args:
        message: the whole line, where it has no such parts.
        field: the option at fault, by its Python name.
        subject: what is at fault, where that is no option: "the recipe", a file.
        must: what must hold, after "must".
        got: what arrived: a value, or a clause that begins with "but" or "got".
        do: what to do about it.

    >>> str(InputError(field="fraction", must="be in (0, 1]", got=2.0, do="pass a share such as 0.2"))
    'fraction must be in (0, 1], got 2.0: pass a share such as 0.2'

    A long value is cut:

    >>> len(str(InputError(field="bands", must="be a number", got=list(range(1000)))))
    191
    """

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        subject: str | None = None,
        must: str | None = None,
        got: object = None,
        do: str | None = None,
    ) -> None:
        self.field, self.subject, self.must, self.got, self.do = field, subject, must, got, do
        if must is not None:
            named = option(field) if field is not None else subject
            said = str(got)
            if not isinstance(got, str) and len(said) > _MOST_SHOWN:  # a value, and not a clause
                said = f"{said[:_MOST_SHOWN]}..."
            clause = "" if got is None else ", " + (said if said.startswith(("but ", "got ")) else f"got {said}")
            message = f"{named} must {must}{clause}{f': {do}' if do else ''}"
        self._message = message
        super().__init__(self.spelled(str))

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep options unspelled between processes: whoever prints the message spells them."""
        return type(self), (self._message,), self.__dict__

    def spelled(self, spell: Callable[[str], str]) -> str:
        """Return the message, with every option's name as `spell` has it."""
        return _OPTION.sub(lambda named: spell(named[1]), self._message)
