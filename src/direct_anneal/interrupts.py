"""Ctrl-C and SIGTERM end a command in one line, however often they come."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 128 + signal.SIGTERM
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: as Ctrl-C, with another exit code."""


def exit_code(error: BaseException) -> int | None:
    """Return the code of the signal that an error stems from; None where it stems from none.

    What was under way may have made another error of it: Python itself makes a RuntimeError of one in `__set_name__`.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return EXIT_TERMINATED if isinstance(cause, TerminatedError) else EXIT_INTERRUPTED


def heed_sigterm() -> None:
    """Raise TerminatedError in the main thread at SIGTERM. For a process of our own: its end takes it back.

    Where somebody else handles or ignores the signal, nothing is changed. A forked child dies of it, as before.
    """
    owner = os.getpid()

    def terminate(number: int, _: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise TerminatedError

    if _is_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        terminate.heeded = True  # type: ignore[attr-defined]
        signal.signal(signal.SIGTERM, terminate)


@contextmanager
def last_words(code: int) -> Iterator[None]:
    """Let nothing break into what is printed here, the last of a process that heeds SIGTERM.

    Afterwards another Ctrl-C or SIGTERM ends the process at once, with `code`: there is nothing left to be said.
    """
    if not (_is_main_thread() and _is_heeded(signal.getsignal(signal.SIGTERM))):
        yield
        return
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    yield
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM in the list that is given, instead of raising it; the second is raised.

    Handlers that are neither Python's own nor ours stay as they are.
    """
    noted: list[int] = []
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        noted.append(number)
        put_back()

    if _is_main_thread():
        found = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {n: each for n, each in found.items() if each is signal.default_int_handler or _is_heeded(each)}
        for number in before:
            signal.signal(number, note)
    try:
        yield noted
    finally:
        put_back()


def interrupt(number: int) -> KeyboardInterrupt:
    """Return the exception of a signal that was held back."""
    return TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()


def _is_heeded(handler: Any) -> bool:
    return getattr(handler, "heeded", False)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
