"""Shards made by the workers of a Ray cluster. Workers and machines may be lost at any time, and others may come."""

from __future__ import annotations

import errno
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from direct_anneal.distributed.connect import LOOK_SECONDS, PATIENCE_SECONDS, connected, room_for
from direct_anneal.distributed.worker import Task, Worker, documents_name
from direct_anneal.errors import InputError, option
from direct_anneal.features import Extraction
from direct_anneal.features.storage import place_at
from direct_anneal.gradients import Coverage, GradientSketcher, SlowPathWarning

_MOST_ATTEMPTS = 5  # at a shard, and at starting a worker: what fails so often is no accident
_STORE_BYTES = 100 << 20  # of Ray's shared memory, which shards do not go through: who made them writes them
_FINAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM})


class RayEngine:
    """Engine that makes shards on a cluster: one model a worker, one shard at a time each.

    Which worker makes a shard does not matter to its bytes. A shard whose worker is lost is begun again by another,
    unless it had been committed; another worker is started in its place.

    Args:
        build_sketcher: called once by every worker; goes there pickled.
        address: of a cluster; see `connected`, which is called once there is something to make.
        workers: how many; one for each GPU of the cluster, or each core, where left out.
        gpu: whether each has a GPU of its own.
    """

    def __init__(
        self, build_sketcher: Callable[[], GradientSketcher], *, address: str | None, workers: int | None, gpu: bool
    ) -> None:
        self._build_sketcher = build_sketcher
        self._address = address
        self._num_workers = workers
        self._gpu = gpu
        self._connection = ExitStack()
        self._ray: Any = None
        self._starting: dict[Any, Any] = {}  # what `start` will give → worker
        self._idle: list[Any] = []
        self._failed_starts = 0
        self._coverage: Coverage | None = None

    def close(self) -> None:
        """Let the workers go."""
        for worker in (*self._starting.values(), *self._idle):
            self._ray.kill(worker)
        self._starting.clear()
        self._idle.clear()
        self._connection.close()
        self._ray = None

    def find_batch_tokens(self, longest: np.ndarray) -> int:
        self._connect()
        while True:
            self._await_worker()
            try:
                found: int = self._ray.get(self._idle[-1].find_batch_tokens.remote(longest))
                return found
            except self._lost:
                self._idle.pop()
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error

    def make(self, extraction: Extraction, shards: Sequence[int]) -> list[int]:
        self._connect()
        making = _Making(self._ray, self._lost, extraction, shards)
        try:
            while making.waiting or making.by_task:
                self._keep_starting(len(making.by_task), len(making.waiting))
                while making.waiting and self._idle:
                    making.begin(self._idle.pop())
                for task in self._wait([*making.by_task]):
                    if (worker := making.end(task)) is not None:
                        self._idle.append(worker)
        finally:
            for worker, _ in making.by_task.values():  # after an error; what they still write, the next run can use
                self._ray.kill(worker)
        redone = making.redone
        if redone:
            extraction.store.sweep()
        # Should a worker that was out of reach have gone on, it may have written into what another was writing.
        if damaged := [shard for shard in dict.fromkeys(redone) if not extraction.store.holds(shard)]:
            for shard in damaged:
                making.advance(shard, -1)
            redone += self.make(extraction, damaged)
        return sorted(set(redone))

    def coverage(self) -> Coverage | None:
        return self._coverage

    def _connect(self) -> None:
        if self._ray is not None:
            return
        ray = self._connection.enter_context(connected(self._address, self._num_workers, _STORE_BYTES))
        there = room_for(ray, "GPU" if self._gpu else "CPU")
        self._ray, self._num_workers = ray, self._num_workers or there
        self._worker = ray.remote(num_cpus=1, num_gpus=int(self._gpu), max_restarts=0)(Worker)
        self._builder = ray.put(self._build_sketcher)
        died = ray.exceptions
        self._lost = (died.RayActorError, died.WorkerCrashedError, died.NodeDiedError, died.OutOfMemoryError)

    def _keep_starting(self, num_busy: int, num_waiting: int) -> None:
        """Start as many workers as there is work for."""
        assert self._num_workers is not None
        alive = num_busy + len(self._idle) + len(self._starting)
        for _ in range(min(self._num_workers, num_busy + num_waiting) - alive):
            worker = self._worker.remote()
            self._starting[worker.start.remote(self._builder)] = worker

    def _await_worker(self) -> None:
        while not self._idle:
            self._keep_starting(0, 1)
            self._wait([])

    def _wait(self, making: list[Any]) -> list[Any]:
        """Collect the shards that are ready; workers that have started become idle.

        Raises:
            InputError: no worker could be started for a long time.
        """
        since = time.monotonic()
        while True:
            ready, _ = self._ray.wait([*making, *self._starting], num_returns=1, timeout=LOOK_SECONDS)
            for one in ready:
                if one in self._starting:
                    self._started(one, self._starting.pop(one))
            if ready:
                return [one for one in ready if one in making]
            if not making and not self._idle and time.monotonic() - since > PATIENCE_SECONDS:
                raise InputError(
                    subject="the cluster",
                    must="have room for a worker",
                    got=f"but had none for {PATIENCE_SECONDS:.0f} seconds",
                    do="check ray status, and run the same command again to go on",
                )

    def _started(self, start: Any, worker: Any) -> None:
        try:
            coverage = self._ray.get(start)
        except self._lost as error:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_ATTEMPTS:
                raise InputError(
                    subject="workers",
                    must="be able to start and to load the model",
                    got=(
                        f"but {self._failed_starts} in a row were lost, which is often for want of memory, "
                        "or of direct-anneal on that machine"
                    ),
                    do=f"...{' '.join(str(error).split())[-200:]}",
                ) from error
            return
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        self._failed_starts = 0
        self._coverage = self._coverage or coverage
        self._idle.append(worker)


class _Making:
    """Shards on their way: which wait, who makes which, and how often each has been tried.

    Args:
        ray: connected.
        lost: the errors of workers that are gone.
        extraction: of which store.
        shards: to be made.

    Attributes:
        waiting: shards that nobody makes yet, or again.
        by_task: what will be ready → its worker and its shard.
        redone: shards that were begun again, as often as they were.
    """

    def __init__(
        self, ray: Any, lost: tuple[type[Exception], ...], extraction: Extraction, shards: Sequence[int]
    ) -> None:
        self._ray, self._lost, self._extraction = ray, lost, extraction
        self._place = place_at(extraction.store.directory)
        self._attempts: Counter[int] = Counter()
        self.waiting = deque(shards)
        self.by_task: dict[Any, tuple[Any, int]] = {}
        self.redone: list[int] = []

    def begin(self, worker: Any) -> None:
        """Let a worker make the next shard."""
        shard, extraction = self.waiting.popleft(), self._extraction
        self._attempts[shard] += 1
        self._place.write(documents_name(shard), extraction.documents(shard).to_bytes())
        words = extraction.words
        wanted = words is not None and not words.holds(shard)
        task = Task(
            place=str(self._place),
            header=extraction.store.header,
            shard=shard,
            max_length=extraction.max_length,
            batch_tokens=extraction.batch_tokens,
            words=(str(place_at(words.directory)), words.header) if words is not None and wanted else None,
        )
        self.by_task[worker.make.remote(task)] = worker, shard

    def end(self, task: Any) -> Any | None:
        """See what became of a task that is ready; its worker, if that is still there.

        Raises:
            Exception: what the worker raised, where that would not pass, or has come too often.
        """
        worker, shard = self.by_task.pop(task)
        try:
            made = self._ray.get(task)
        except self._lost as error:
            self._ray.kill(worker)  # it may be out of reach, and not dead
            self._lose(shard, error)
            return None
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, OSError) or error.cause.errno in _FINAL:
                raise error.cause from error
            self._begin_again(shard, error.cause)  # a network has its moments
            return worker
        if made.fitting is not None:
            self._extraction.shrink(made.fitting)
            self._attempts[shard] = 0
            self.waiting.appendleft(shard)
            return worker
        for message in made.slow:
            warnings.warn(message, SlowPathWarning, stacklevel=3)
        self._finish(shard)
        return worker

    def advance(self, shard: int, sign: int = 1) -> None:
        """Tell progress of a shard's tokens; or take them back."""
        extraction = self._extraction
        extraction.advance(sign * int(extraction.corpus.num_tokens[extraction.store.rows(shard)].sum()))

    def _finish(self, shard: int) -> None:
        self._place.remove(documents_name(shard))
        self.advance(shard)

    def _lose(self, shard: int, error: Exception) -> None:
        if self._extraction.store.holds(shard):  # its worker had come so far
            self._finish(shard)
            return
        self.redone.append(shard)
        self._begin_again(
            shard,
            InputError(
                subject="workers",
                must="survive a shard",
                got=(
                    f"but {_MOST_ATTEMPTS} were lost one after the other while they made shard {shard} of "
                    f"{self._place}, which is often for want of memory (pass a smaller {option('batch_tokens')} "
                    f"or {option('max_length')}): "
                    f"{' '.join(str(error).split()):.200}"
                ),
            ),
        )

    def _begin_again(self, shard: int, error: Exception) -> None:
        if self._attempts[shard] >= _MOST_ATTEMPTS:
            raise error
        self.waiting.appendleft(shard)
