"""A `map` by actors of a Ray cluster: each holds what takes long to load, a model above all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Generic, Self, TypeVar

from direct_anneal.distributed.connect import LOOK_SECONDS, PATIENCE_SECONDS, connected, room_for
from direct_anneal.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_ATTEMPTS = 5  # at an item: what fails so often is no accident
_STORE_BYTES = 1 << 30  # of Ray's shared memory, where this machine is all there is: items on their way


class ActorMap(Generic[Item, Result]):
    """The built-in `map` of a function that each worker builds once; results come in the order of items.

    A context: Ray is connected while it lasts, from the first item on. An item whose worker or machine is lost is
    given to another.

    Args:
        build: gives the function; called by every worker; goes there pickled.
        address: of a cluster; see `connected`.
        workers: how many; one for each GPU of the cluster, or each core, where left out.
        gpu: whether each has a GPU of its own.
    """

    def __init__(
        self, build: Callable[[], Callable[[Item], Result]], *, address: str | None, workers: int | None, gpu: bool
    ) -> None:
        self._build, self._address, self._num_workers, self._gpu = build, address, workers, gpu
        self._connection = ExitStack()
        self._ray: Any = None
        self._idle: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle.clear()
        self._connection.close()
        self._ray = None

    def __call__(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in order; no more than twice as many items as workers are on their way.

        Raises:
            InputError: as the function does, or workers are lost again and again.
        """
        source = enumerate(items)
        busy: dict[Any, tuple[Any, int, Item, int]] = {}  # result to come → actor, place, item, attempts
        again: deque[tuple[int, Item, int]] = deque()
        done: dict[int, Result] = {}
        first, exhausted = 0, False
        try:
            while True:
                while not exhausted or again:
                    if self._ray is not None and len(busy) >= (self._num_workers or 1):
                        break
                    if not again:
                        if len(busy) + len(done) >= 2 * (self._num_workers or 1):
                            break
                        following = next(source, None)
                        if following is None:
                            exhausted = True
                            break
                        again.append((*following, 0))
                    place, item, attempts = again.popleft()
                    actor = self._worker()
                    busy[actor.do.remote(item)] = actor, place, item, attempts + 1
                while first in done:
                    yield done.pop(first)
                    first += 1
                if not busy:
                    if exhausted and not again:
                        return
                    continue
                for ready in self._finished([*busy]):
                    actor, place, item, attempts = busy.pop(ready)
                    try:
                        done[place] = self._ray.get(ready)
                        self._idle.append(actor)
                    except self._lost as error:
                        self._ray.kill(actor)  # it may be out of reach, and not dead
                        if attempts >= _MOST_ATTEMPTS:
                            raise InputError(
                                subject="workers",
                                must="survive their work",
                                got=(
                                    f"but {attempts} were lost one after the other over the same "
                                    "documents, which is often for want of memory"
                                    f": {' '.join(str(error).split()):.200}"
                                ),
                            ) from error
                        again.appendleft((place, item, attempts))
                    except self._ray.exceptions.RayTaskError as error:
                        self._idle.append(actor)
                        raise error.cause from error
        finally:
            for actor, *_ in busy.values():  # after an error
                self._ray.kill(actor)

    def _worker(self) -> Any:
        """Return a worker that has nothing to do; begin one where there is none."""
        if self._ray is None:
            ray = self._connection.enter_context(connected(self._address, self._num_workers, _STORE_BYTES))
            self._num_workers = self._num_workers or room_for(ray, "GPU" if self._gpu else "CPU")
            self._actor = ray.remote(num_cpus=1, num_gpus=int(self._gpu), max_restarts=0)(_Holder)
            self._builder = ray.put(self._build)
            died = ray.exceptions
            self._lost = (died.RayActorError, died.WorkerCrashedError, died.NodeDiedError, died.OutOfMemoryError)
            self._ray = ray
        return self._idle.pop() if self._idle else self._actor.remote(self._builder)

    def _finished(self, busy: list[Any]) -> list[Any]:
        """Wait for some of the results, one at least.

        Raises:
            InputError: the cluster has had no room for a worker for a long time.
        """
        since = time.monotonic()
        while True:
            ready, _ = self._ray.wait(busy, num_returns=1, timeout=LOOK_SECONDS)
            if ready:
                return list(ready)
            if self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 0) >= 1:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                raise InputError(
                    subject="the cluster",
                    must="have room for a worker",
                    got=f"but had none for {PATIENCE_SECONDS:.0f} seconds",
                    do="check ray status, and run the same command again to go on",
                )


class _Holder:
    """The worker: holds the function, once it was asked for."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._build = build
        self._function: Callable[[Any], Any] | None = None

    def do(self, item: Any) -> Any:
        """Call the function."""
        if self._function is None:
            self._function = self._build()
        return self._function(item)
