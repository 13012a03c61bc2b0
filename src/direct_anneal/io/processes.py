"""The same work on many things by several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from direct_anneal.errors import InputError, option

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    work: Callable[..., Result],
    items: Sequence[Item],
    given: tuple[Any, ...],
    workers: int,
    done: Callable[[Item, Result], object],
) -> None:
    """Call `work(item, *given)` for each item, in this process or in several.

    Args:
        work: an importable function, whose order of calls does not matter.
        items: sent one by one, at most two a worker ahead.
        given: sent to each process once.
        workers: processes; with 1, or a single item, all is done here.
        done: called here with each item and its result, in the order of completion.

    Raises:
        InputError: a process was ended from outside.
        Exception: whatever `work` raises.
    """
    if workers == 1 or len(items) < 2:
        for item in items:
            done(item, work(item, *given))
        return
    context = multiprocessing.get_context("forkserver")
    with (
        telling_of_lost_workers(),
        ProcessPoolExecutor(
            min(workers, len(items)), mp_context=context, initializer=_begin_worker, initargs=(work, given)
        ) as pool,
    ):
        try:
            running: dict[Future[Any], Item] = {}
            for number, item in enumerate(items, start=1):
                running[pool.submit(_work, item)] = item
                while running and (len(running) >= 2 * workers or number == len(items)):
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(running.pop(future), future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def telling_of_lost_workers() -> Iterator[None]:
    """Say in one line that a worker was ended from outside.

    Raises:
        InputError: one was.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            subject="a worker",
            must="not be ended from outside",
            got="but one was, perhaps for want of memory",
            do=f"run the command again to go on, with fewer {option('workers')}",
        ) from error


_given: list[Any] = []  # of a worker: what to do, and with what


def _begin_worker(work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent tells
    _given[:] = [work, given]


def _work(item: Any) -> Any:
    work, given = _given
    return work(item, *given)
