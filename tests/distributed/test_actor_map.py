"""A map by actors, against a cluster that is made up: results in order, the lost begun again, nobody left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace as _Namespace
from typing import Any

import pytest

from direct_anneal.distributed.actor_map import ActorMap
from direct_anneal.errors import InputError


class Namespace(_Namespace):
    """Names with values; can be a key, as a reference to a result is."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class ActorLostError(Exception):
    pass


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Cluster:
    """Stand-in for Ray, as far as the map needs it; results become ready in random order.

    Args:
        lost: which calls lose their actor, counted from 0 over all.
    """

    def __init__(self, lost: Callable[[int], bool] = lambda _: False) -> None:
        self.lost, self.calls, self.random = lost, 0, random.Random(0)
        self.alive, self.most, self.connections = 0, 0, 0
        gone = type("Other", (Exception,), {})
        self.exceptions = Namespace(
            RayActorError=ActorLostError,
            WorkerCrashedError=gone,
            NodeDiedError=gone,
            OutOfMemoryError=gone,
            RayTaskError=TaskError,
        )

    @contextmanager
    def connected(self, *_: object) -> Iterator[Cluster]:
        self.connections += 1
        yield self
        self.connections -= 1

    def put(self, value: Any) -> Any:
        return value

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": 3}

    def remote(self, **_: object) -> Callable[[type], Any]:
        return lambda kind: Namespace(remote=lambda builder: self.started(kind(builder)))

    def started(self, held: Any) -> Any:
        self.alive += 1
        self.most = max(self.most, self.alive)

        def do(item: Any) -> Any:
            self.calls += 1
            number = self.calls - 1
            return Namespace(run=lambda: held.do(item), is_lost=self.lost(number))

        return Namespace(do=Namespace(remote=do))

    def wait(self, refs: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return [self.random.choice(refs)], []

    def get(self, ref: Any) -> Any:
        if ref.is_lost:
            raise ActorLostError("out of memory")
        try:
            return ref.run()
        except Exception as error:
            raise TaskError(error) from error

    def kill(self, _: Any) -> None:
        self.alive -= 1


def squares() -> Callable[[int], int]:
    return lambda item: item**2


def mapped(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, items: Any, build: Any = squares) -> list[Any]:
    monkeypatch.setattr("direct_anneal.distributed.actor_map.connected", cluster.connected)
    with ActorMap(build, address=None, workers=None, gpu=False) as mapper:
        return list(mapper(items))


def test_results_come_in_order_from_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    assert mapped(monkeypatch, cluster, range(20)) == [item**2 for item in range(20)]
    assert (cluster.most, cluster.alive, cluster.connections) == (3, 0, 0)


def test_what_was_lost_is_begun_again_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(lost=lambda call: call % 4 == 1)
    assert mapped(monkeypatch, cluster, range(12)) == [item**2 for item in range(12)]
    assert cluster.alive == 0


def test_what_is_always_lost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(lost=lambda _: True)
    with pytest.raises(InputError, match="5 were lost one after the other over the same documents"):
        mapped(monkeypatch, cluster, range(12))
    assert cluster.alive == 0


def test_errors_of_a_worker_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model() -> Any:
        raise InputError(field="model", must="be there")

    cluster = Cluster()
    with pytest.raises(InputError, match="model must be there"):
        mapped(monkeypatch, cluster, range(3), no_model)
    assert cluster.alive == 0


def test_nobody_is_connected_for_nothing_and_items_are_read_as_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, read = Cluster(), list[int]()
    assert mapped(monkeypatch, cluster, ()) == []
    assert cluster.most == 0

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    monkeypatch.setattr("direct_anneal.distributed.actor_map.connected", cluster.connected)
    with ActorMap(squares, address=None, workers=None, gpu=False) as mapper:
        assert next(iter(mapper(items()))) == 0
        assert len(read) <= 6
