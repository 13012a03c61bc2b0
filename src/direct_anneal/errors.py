"""The one error that is the user's to mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave or asked for cannot be used.

    The message is one line: what must hold, what arrived, what to do. The command line prints it without a
    traceback and exits with code 2; nothing that was computed before is lost.
    """


@contextmanager
def named_as_in_python() -> Iterator[None]:
    """Messages say `--budget-ratio`, as most people type it; of a call in Python they say `budget_ratio`."""
    try:
        yield
    except InputError as error:
        message = re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise InputError(message) from error.__cause__
