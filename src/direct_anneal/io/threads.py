"""The same work on many things by several threads of this process, and none of BLAS's own.

BLAS would divide each product among threads that wait for one another by spinning: where other processes wanted the
cores, six QR decompositions took 35 s of a command that takes 4 (docs/log.md, 28 November 2026). And how sums are
divided may hang on the number of cores. So BLAS has one thread, and whole parts of the rows go to threads of ours.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import scipy.linalg  # noqa: F401  (a BLAS of its own, which is limited only if it is there)
from threadpoolctl import threadpool_limits

from direct_anneal.io.processes import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep numpy's and scipy's BLAS to one thread each while it lasts; torch keeps its own."""
    with threadpool_limits(1, user_api="blas"):
        yield


def num_threads() -> int:
    """Return the threads that this process may use: its cores, or OMP_NUM_THREADS where that asks for fewer."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(num_cores(), int(asked)) if asked.isdecimal() and int(asked) > 0 else num_cores()


class ThreadMap:
    """The built-in `map` by threads: results come in the order of items, so sums are the same.

    A context, and for functions that leave the interpreter's lock: numpy's and torch's on blocks of numbers, and
    reading. One item more than there are threads is on its way at most.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or num_threads()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="parts")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yield the function of each item, in order."""
        if self._threads == 1:
            yield from map(function, items)
            return
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
