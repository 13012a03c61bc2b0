"""Solving from a store on disk: what a pass takes against a plain sum of the same files, and the memory of a solve.

    OMP_NUM_THREADS=1 python benchmarks/from_disk.py [--samples 1000000] [--size 1024]
        [--objectives descent matching energy] [--threads 1] [--directory DIR]

A store of unit rows is written to a temporary directory, which is removed again. "Cold" files have been dropped from
the system's cache (posix_fadvise), "warm" ones were read just before. A bare scan reads every features-*.npy from first
to last byte into one buffer of 4 MiB, a plain sum adds up its bytes, eight at a time; these and the products of a
linear step and of a search for swaps take turns, and medians of processor time are compared.
Each solve is a process of its own, and so are the passes; the peak of memory is that of the whole process, of which the
interpreter and its libraries are stated.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from direct_anneal.config.objective import DAMPING, TARGET_SCALE
from direct_anneal.features import FeatureStore, ShardRows
from direct_anneal.io.threads import ThreadMap, one_blas_thread
from direct_anneal.solver import FeatureMatrix, Map, SelectionProblem, solve

BUFFER = 4 << 20
OBJECTIVES = ("descent", "matching", "energy")
VALIDATION = 600  # rows whose mean is the target of matching


def opened(directory: Path, samples: int, size: int) -> FeatureStore:
    return FeatureStore(directory, num_samples=samples, sketch_size=size, fingerprint={"benchmark": "from_disk"})


def write(store: FeatureStore) -> None:
    """Unit rows with a spectrum that decays."""
    size = store.header.sketch_size
    decay = (np.arange(1, size + 1) ** -0.5).astype(np.float32)
    for shard in range(store.num_shards):
        places = store.rows(shard)
        rows = np.random.default_rng(shard).standard_normal((len(places), size), dtype=np.float32) * decay
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        table = {
            "id": [f"{place:09d}" for place in places],
            "source": ["pool.jsonl"] * len(places),
            "row": list(places),
            "domain": ["web"] * len(places),
            "num_tokens": [100] * len(places),
        }
        ones = np.ones(len(places))
        store.write(
            shard, ShardRows(features=rows.astype(np.float16), samples=pa.table(table), losses=ones, norms=ones)
        )


def drop(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def scan(paths: list[Path]) -> None:
    buffer = bytearray(BUFFER)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def plain_sum(paths: list[Path]) -> int:
    """The files' bytes, eight at a time, added up."""
    return sum(int(np.fromfile(path, np.uint64).sum()) for path in paths)


def peak() -> float:
    """MiB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def compare_passes(directory: Path, samples: int, size: int, turns: int) -> None:
    """The two products of a linear step beside bare scans."""
    features = FeatureMatrix(opened(directory, samples, size).features())
    paths = sorted(directory.glob("features-*.npy"))
    tenth = np.where(np.random.default_rng(0).random(samples) < 0.1, 1.0, 0.0)  # as many as are chosen
    print(f"interpreter and libraries: {peak():,.0f} MiB", flush=True)
    actions = {
        "bare scan": lambda: scan(paths),
        "plain sum": lambda: plain_sum(paths),
        "sum of rows": lambda: features.weighted_sum(np.ones(samples)),
        "sum of a tenth of the rows": lambda: features.weighted_sum(tenth),
        "products with a direction": lambda: features.dot(np.ones(size)),
        "rough products": lambda: features.dot(np.ones(size), rough=True),
    }
    for state in ("cold", "warm"):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
        for _ in range(turns):
            for name, act in actions.items():
                if state == "cold":
                    drop(paths)
                started, processor = time.perf_counter(), time.process_time()
                act()
                found[name].append((time.perf_counter() - started, time.process_time() - processor))
        plain = float(np.median([processor for _, processor in found["plain sum"]]))
        for name, times in found.items():
            wall, processor = np.median(times, axis=0)
            print(
                f"{state}, {name}: {wall:.2f} s, {processor:.2f} s of processors, {processor / plain:.2f} plain sums, "
                f"{2 * samples * size / 2**30 / wall:.2f} GiB/s",
                flush=True,
            )
    print(f"peak {peak():,.0f} MiB", flush=True)


def damped_root(curvature: np.ndarray) -> np.ndarray:
    """W with W Wᵀ = (H + δ)⁻¹, shape (R, R)."""
    values, vectors = np.linalg.eigh(curvature)
    return np.asarray(vectors / np.sqrt(values + DAMPING * values[-1]))


def run(objective: str, threads: int, directory: Path, samples: int, size: int) -> None:
    """One solve, with threads that share the rows, as `select` has them, and one thread of BLAS."""
    with one_blas_thread(), ThreadMap(threads) as mapper:
        solved(objective, mapper, directory, samples, size)


def solved(objective: str, mapper: Map, directory: Path, samples: int, size: int) -> None:
    features = FeatureMatrix(opened(directory, samples, size).features(), mapper=mapper)
    rng = np.random.default_rng(1)
    cost, count = np.exp(rng.normal(size=samples)), samples // 10
    target = {"target": rng.normal(size=size)} if objective == "descent" else {}
    budget = float(0.6 * cost.mean() * count)
    started, processor = time.perf_counter(), time.process_time()
    if objective == "matching":  # as by default: in the metric of the pool's damped curvature, without a budget
        mean = features.rows(np.arange(VALIDATION)).mean(axis=0)
        root = damped_root(features.gram() / samples)
        features = features.like(mapped=root)
        target, budget = {"target": TARGET_SCALE * count * mean @ root}, np.inf
    selection = solve(
        SelectionProblem(features, cost, num_selected=count, budget=budget, objective=objective, **target)
    )
    print(
        f"{objective}: {time.perf_counter() - started:.1f} s ({time.process_time() - processor:.1f} s of processors), "
        f"{selection.stats['passes']} passes, gap to the bound {1 - selection.objective / selection.bound:.1e}, peak "
        f"{peak():,.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--threads", type=int, default=1, help="of a solve; passes are timed with one")
    parser.add_argument("--turns", type=int, default=3, help="of scans and products; none where 0")
    parser.add_argument("--directory", type=Path, default=None, help="where the temporary directory is made")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        place = (Path(directory) / "store", arguments.samples, arguments.size)
        write(opened(*place))
        processes = [
            context.Process(target=run, args=(objective, arguments.threads, *place))
            for objective in arguments.objectives
        ]
        if arguments.turns:
            processes.insert(0, context.Process(target=compare_passes, args=(*place, arguments.turns)))
        for process in processes:
            process.start()
            process.join()


if __name__ == "__main__":
    main()
