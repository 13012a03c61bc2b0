"""The map by tasks, with a stand-in for Ray whose tasks end in whatever order it likes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from direct_anneal.distributed import TaskMap, connect, distributed_map
from direct_anneal.errors import InputError


class _Error(Exception):
    """Ray's: a worker is gone."""


class _TaskError(_Error):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Task:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments


class LatestFirst:
    """Ray, as far as `TaskMap` knows it: of the tasks that run, the latest ends first, or the one at `first`.

    Attributes:
        running: tasks that were begun and have not ended.
        most: how many ran at once.
        waiting: how many had ended at once without being asked for.
        cancelled: how many were.
    """

    exceptions = SimpleNamespace(RayError=_Error, RayTaskError=_TaskError)

    def __init__(self, *, cores: int = 8, lost: bool = False, first: int = -1) -> None:
        self.cores, self.lost, self.first = cores, lost, first
        self.running: list[_Task] = []
        self.ended: set[_Task] = set()
        self.most = self.waiting = self.cancelled = 0

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": self.cores}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_: object) -> Callable[[Callable[..., Any]], Any]:
        def begin(function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Task:
            task = _Task(function, arguments)
            self.running.append(task)
            self.most = max(self.most, len(self.running))
            return task

        return lambda function: SimpleNamespace(remote=lambda *arguments: begin(function, arguments))

    def wait(self, tasks: Collection[_Task], timeout: float) -> tuple[list[_Task], list[_Task]]:
        assert timeout > 0
        if not self.cores:
            return [], [*tasks]
        task = self.running.pop(self.first)
        self.ended.add(task)
        self.waiting = max(self.waiting, len(self.ended))
        return [task], [one for one in tasks if one is not task]

    def get(self, task: _Task) -> Any:
        self.ended.remove(task)
        if self.lost:
            raise _Error("the worker died")
        try:
            return task.function(*task.arguments)
        except InputError as error:
            raise _TaskError(error) from error

    def cancel(self, task: _Task, force: bool) -> None:
        assert force
        self.running.remove(task)
        self.cancelled += 1


def mapper(monkeypatch: pytest.MonkeyPatch, ray: LatestFirst, workers: int | None = 3) -> TaskMap:
    @contextmanager
    def connected(*_: object) -> Iterator[LatestFirst]:
        yield ray

    monkeypatch.setattr(distributed_map, "connected", connected)
    return TaskMap(address=None, workers=workers)


def squared(item: int) -> int:
    if item < 0:
        raise InputError(f"no row {item}")
    return item**2


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_come_in_order_and_no_more_run_than_there_are_workers(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    ray = LatestFirst()
    with mapper(monkeypatch, ray) as mapped:
        assert list(mapped(squared, range(count))) == [item**2 for item in range(count)]
    assert ray.most == min(count, 3)
    assert ray.waiting <= 6
    assert not ray.running
    assert not ray.ended


def test_without_a_number_every_core_has_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LatestFirst(cores=5)
    with mapper(monkeypatch, ray, workers=None) as mapped:
        list(mapped(squared, range(20)))
    assert ray.most == 5


def test_what_nobody_waits_for_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = LatestFirst(first=0)
    with mapper(monkeypatch, ray) as mapped:
        results = iter(mapped(squared, range(20)))
        next(results)
        assert len(ray.running) == 2
        results.close()  # type: ignore[attr-defined]
    assert (ray.cancelled, ray.running) == (2, [])


def test_what_is_amiss_on_a_worker_is_told_as_if_it_were_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with mapper(monkeypatch, LatestFirst()) as mapped, pytest.raises(InputError, match=r"^no row -1$"):
        list(mapped(squared, [1, -1, 2]))


def test_workers_that_are_lost_each_time_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        mapper(monkeypatch, LatestFirst(lost=True)) as mapped,
        pytest.raises(InputError, match=r"workers must survive .* often for want of memory: the worker died$"),
    ):
        list(mapped(squared, [1]))


def test_a_cluster_that_has_no_core_any_more_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_map, "PATIENCE_SECONDS", -1.0)
    with (
        mapper(monkeypatch, LatestFirst(cores=0)) as mapped,
        pytest.raises(InputError, match="must have a core for tasks, but had none"),
    ):
        list(mapped(squared, [1]))


def test_another_version_of_us_is_refused() -> None:
    with pytest.raises(InputError, match=r"direct-anneal must be the same on every machine, but is .* and 0\.0 where"):
        distributed_map.done(("0.0", squared), 1)


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Somebody who answers everybody with these bytes; None: never."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # who asks, and this test, may end before it is answered
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

        connections: list[socket.socket] = []
        Thread(target=serve, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                connection.close()


SETTINGS = bytes((0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1))


@pytest.mark.parametrize(
    "answer", [None, b"", b"\0\0", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"]
)
def test_who_is_no_ray_cluster_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr(connect, "ANSWER_SECONDS", 0.05 if answer is None else 15.0)
    with listening(answer) as address, pytest.raises(InputError, match="must be where a Ray cluster answers") as told:
        connect.check_answers(address, "it")
    assert "\n" not in str(told.value)


def test_who_answers_as_ray_does_is_asked_by_ray() -> None:
    with listening(SETTINGS) as address:
        connect.check_answers(address, "it")
    for other in ("auto", "local", "ray://127.0.0.1:1"):
        connect.check_answers(other, "it")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "127.0.0.1:99999",
        "no.such.host.invalid:1",
        "head",
        ":1",
        "a b\n\x1b[2J:1",
        "x:" + 9999 * "1",
        "é..é:1",
    ],
)
def test_what_is_no_address_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: what is no cluster's address is not tested")
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given in (None, address):
        with pytest.raises(InputError) as told, connect.connected(given, 1, 100 << 20):
            pass
        assert str(told.value).startswith("RAY_ADDRESS must be" if given is None else "ray_address must be")
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 300


def test_ray_that_does_not_start_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: how it starts is not tested")

    def too_late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", too_late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(InputError, match=r"needs Ray to start on this machine, .*: The current node timed out during"),
        connect.connected(None, 1, 100 << 20),
    ):
        pass
