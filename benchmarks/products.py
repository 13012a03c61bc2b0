"""Traffic of the solver's products where tasks of a cluster carry them out, and a task's cost to the driver.

    OMP_NUM_THREADS=1 python benchmarks/products.py [--size 1024] [--tasks 500]

Bytes are those of the pickled items and results of products over a store of two full parts: zeros, in a file that
takes no room. The driver's processor time is of tasks that do nothing, with two workers of Ray on this machine; it is
this process's alone.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from direct_anneal.distributed import TaskMap
from direct_anneal.features.rows import StoredRows
from direct_anneal.solver import FeatureMatrix, matrix

SHARD = 1024
PARTS = 2


class Counting:
    """The built-in `map`, which counts bytes."""

    def __init__(self) -> None:
        self.tasks = self.sent = self.received = 0

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        for item in items:
            result = function(item)
            self.tasks += 1
            self.sent += len(pickle.dumps(item))
            self.received += len(pickle.dumps(result))
            yield result


def empty_shards(directory: Path, samples: int, size: int) -> list[StoredRows]:
    """Shards of zeros, all of them one sparse file."""
    path = directory / "features.npy"
    np.lib.format.open_memmap(path, "w+", np.float16, (SHARD, size)).flush()
    return [StoredRows(path, (SHARD, size))] * (samples // SHARD)


def count(size: int) -> None:
    """Print bytes for each product."""
    with tempfile.TemporaryDirectory() as directory:
        samples = PARTS * matrix._PART_BYTES // (8 * size) // SHARD * SHARD
        shards, counting = empty_shards(Path(directory), samples, size), Counting()
        features = FeatureMatrix(shards, mapper=counting)
        products: dict[str, Callable[[], object]] = {
            "1 direction": lambda: features.dot(np.ones(size)),
            "9 directions": lambda: features.dot(np.ones((size, 9))),
            "1 sum": lambda: features.weighted_sum(np.ones(samples)),
            "9 sums": lambda: features.weighted_sum(np.ones((samples, 9))),
            "Gram matrix": features.gram,
        }
        print(f"R = {size}, {samples:,} samples, {samples // PARTS:,} a task, {2 * size} bytes of features a sample")
        for name, product in products.items():
            counting.tasks = counting.sent = counting.received = 0
            product()
            print(
                f"{name}: {counting.tasks} tasks; bytes a sample: out {counting.sent / samples:.2f}, "
                f"back {counting.received / samples:.2f}"
            )


def nothing(item: int) -> int:
    """Task that does nothing."""
    return item


def charge(tasks: int) -> None:
    """Print what a task costs the driver."""
    with TaskMap(address=None, workers=2) as mapper:
        list(mapper(nothing, range(20)))  # its processes have started
        started = time.process_time()
        list(mapper(nothing, range(tasks)))
        print(f"driver, a task: {1e3 * (time.process_time() - started) / tasks:.2f} ms of a core")


def main() -> None:
    """Count, then charge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--tasks", type=int, default=500)
    options = parser.parse_args()
    count(options.size)
    charge(options.tasks)


if __name__ == "__main__":
    main()
