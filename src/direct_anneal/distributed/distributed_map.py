"""A `map` by tasks of a Ray cluster: files are tokenised, and all rows computed with, where its workers are.

Of a file its name goes out, and a record of what was written comes back. The solver has N samples, n of them in one
part, R sketch size, k columns: for a part there go out its shards' names and at most n k numbers; n k numbers come
back, or R k, or R². Rows are read by whoever computes with them.
"""

from __future__ import annotations

import importlib.metadata
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Self, TypeVar

from direct_anneal.distributed.connect import LOOK_SECONDS, PATIENCE_SECONDS, connected, room_for
from direct_anneal.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIES = 4  # of a task whose worker or machine is lost
_STORE_BYTES = 1 << 30  # of Ray's shared memory, where this machine is all there is: results that wait for their turn


class TaskMap:
    """The built-in `map` by Ray tasks: results come in the order of items, so sums are the same.

    A context: Ray is connected while it lasts. A task whose worker or machine is lost is done again.

    Args:
        address: of a cluster; see `connected`.
        workers: how many tasks at once, of a core each; as many as the cluster has cores, where left out.
    """

    def __init__(self, *, address: str | None, workers: int | None) -> None:
        self._address = address
        self._workers = workers
        self._connection = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._ray = stack.enter_context(connected(self._address, self._workers, _STORE_BYTES))
            self._at_once = self._workers or room_for(self._ray, "CPU")
            self._task = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(done)
            self._connection = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yield the function of each item, in order.

        Raises:
            InputError: workers are lost again and again, or have another version of us.
        """
        function_there = self._ray.put((importlib.metadata.version("direct-anneal"), function))
        in_order: deque[Any] = deque()
        running: set[Any] = set()
        try:
            for item in items:
                # What waits for one that is late takes memory, too.
                while len(running) == self._at_once or len(in_order) == 2 * self._at_once:
                    running -= self._finished(running)
                    while in_order and in_order[0] not in running:
                        yield self._result(in_order.popleft())
                task = self._task.remote(function_there, item)
                in_order.append(task)
                running.add(task)
            while in_order:
                while in_order[0] in running:
                    running -= self._finished(running)
                yield self._result(in_order.popleft())
        finally:
            for task in running:
                self._ray.cancel(task, force=True)

    def _finished(self, running: set[Any]) -> set[Any]:
        """Return some of the tasks, one at least.

        Raises:
            InputError: the cluster has had no core for a long time.
        """
        since = time.monotonic()
        while True:
            finished, _ = self._ray.wait([*running], timeout=LOOK_SECONDS)
            if finished:
                return set(finished)
            if self._ray.cluster_resources().get("CPU", 0) >= 1:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                raise InputError(
                    subject="the cluster",
                    must="have a core for tasks",
                    got=f"but had none for {PATIENCE_SECONDS:.0f} seconds",
                    do="check ray status, and run the same command again",
                )

    def _result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise InputError(
                subject="workers",
                must="survive their tasks",
                got=(
                    f"but {_RETRIES + 1} were lost one after the other over the same one, which is often "
                    "for want of memory"
                    f": {' '.join(str(error).split()):.200}"
                ),
            ) from error


def done(version_and_function: tuple[str, Callable[[Item], Result]], item: Item) -> Result:
    """Run one task."""
    wanted, function = version_and_function
    if (found := importlib.metadata.version("direct-anneal")) != wanted:
        raise InputError(
            subject="direct-anneal",
            must="be the same on every machine",
            got=f"but is {found} on {socket.gethostname()} and {wanted} where the run began",
            do="install it there",
        )
    return function(item)
