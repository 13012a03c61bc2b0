"""The one error that is the user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave or asked for cannot be used.

    The message is one line: what must hold, what arrived, what to do. The command line prints it without a
    traceback and exits with code 2; nothing that was computed before is lost.
    """
