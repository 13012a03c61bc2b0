from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from direct_anneal.io.processes import num_cores
from direct_anneal.io.threads import ThreadMap, num_threads, one_blas_thread


def blas_threads() -> list[int]:
    return [int(found["num_threads"]) for found in threadpool_info() if found["user_api"] == "blas"]


def test_results_come_in_the_order_of_items_whoever_is_done_first() -> None:
    second_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(60)
        if item == 1:
            second_is_done.set()
        return 10 * item

    with ThreadMap(2) as mapped:
        assert list(mapped(work, range(5))) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("threads", [1, 3])
def test_few_items_are_on_their_way(threads: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with ThreadMap(threads) as mapped:
        results = mapped(str, items())
        assert not taken  # as of the built-in map
        assert next(results) == "0"
        assert len(taken) <= threads + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_what_fails_is_raised_here(threads: int) -> None:
    with ThreadMap(threads) as mapped, pytest.raises(ZeroDivisionError):
        list(mapped(lambda item: 1 // item, [1, 0, 1]))


def test_blas_has_one_thread_and_gets_its_own_back() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert len(before) >= 2  # numpy's and scipy's
        with one_blas_thread():
            assert set(blas_threads()) == {1}
        assert blas_threads() == before


@pytest.mark.parametrize(
    ("asked", "most"), [("1", 1), ("1,4", 1), ("0", None), ("", None), ("many", None), ("100000", None)]
)
def test_openmps_variable_bounds_the_threads(monkeypatch: pytest.MonkeyPatch, asked: str, most: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert num_threads() == (num_cores() if most is None else most)
