"""Digests of files against plain reading: how fast a run is checked before it is used.

    python benchmarks/digests.py --megabytes 1024

Everything is read once before, so that it comes from memory. Processor seconds count the work of all threads: on a
machine that does other things they say what the wall cannot.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from direct_anneal.io.digests import WORKERS, sha256_of_file, sha256_of_files, tree_digests

_BLOCK = 2**23


def plainly(paths: dict[str, Path]) -> None:
    """Read every file in blocks, in one thread."""
    block = bytearray(_BLOCK)
    for path in paths.values():
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def measured(work: Callable[[], object], gigabytes: float) -> tuple[float, float]:
    """(GB/s of the wall, GB for each processor second), the best of three."""
    walls, cores = [], []
    for _ in range(3):
        wall, core = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return gigabytes / min(walls), gigabytes / min(cores)


def main() -> None:
    """Print a line for each kind of digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument(
        "--directory", type=Path, help="where the files are made; the system's temporary one if not given"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        content, size = os.urandom(2**20), 2**20 * options.megabytes
        one, many = {"one": Path(name) / "one"}, {str(number): Path(name) / str(number) for number in range(8)}
        one["one"].write_bytes(content * options.megabytes)
        for path in many.values():
            path.write_bytes(content * (options.megabytes // len(many)))
        gigabytes = size / 1e9
        print(f"{os.cpu_count()} cores, {WORKERS} threads, {options.megabytes:,} MiB")
        plain, _ = measured(lambda: plainly(one), gigabytes)
        print(f"{'plain reading, one thread':40} {plain:6.2f} GB/s")
        kinds: dict[str, Callable[[], object]] = {
            "tree of blake2b, one file": lambda: tree_digests(one),
            "tree of blake2b, eight files": lambda: tree_digests(many),
            "sha256, one file": lambda: sha256_of_file(one["one"]),
            "sha256, eight files in threads": lambda: sha256_of_files(many),
        }
        for kind, work in kinds.items():
            wall, core = measured(work, gigabytes)
            print(
                f"{kind:40} {wall:6.2f} GB/s  {wall / plain:5.0%} of plain reading  {core:5.2f} GB a processor second"
            )


if __name__ == "__main__":
    main()
