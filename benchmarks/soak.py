"""A long run under faults: workers and drivers killed at random moments, reads that are slow or fail.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--minutes 30] [--workers 2] [--documents 2000] [--kill-every 10]

Round after round a driver fills a store with a Ray cluster of this machine, while this process kills a worker every
ten seconds or so, and every third time the driver, which is then started again. Of reads, one in 50 fails and one in 50
takes a second. After each round: every shard is there and whole, every document is there once, and every byte is the
one that a single process without faults wrote. At the end: what was killed, and resident memory of the longest-lived
drivers and workers, midway and late in their lives.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.cluster_utils import Cluster

from direct_anneal.distributed import RayEngine
from direct_anneal.features import extract, storage
from direct_anneal.gradients import GradientSketcher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from corpus.corpus_samples import prepared
from pipeline.tiny import CONTEXT, documents, files_below, write_checkpoint, write_jsonl

from features.extraction_runs import extracted, sketcher, store_for

HERE = Path(__file__).parent
ROWS = 20
FAULTY = 1 / 50


@dataclass(frozen=True)
class Builder:
    """Builds a sketcher in a process whose reads are bad from then on, and leaves the process's number."""

    directory: Path

    def __call__(self) -> GradientSketcher:
        torch.set_num_threads(1)
        storage.Directory.read = _faulty(storage.Directory.read)  # type: ignore[method-assign]
        (self.directory / "workers" / str(os.getpid())).touch()
        return sketcher(self.directory / "checkpoint")


def _faulty(read: Callable[[storage.Directory, str], bytes]) -> Callable[[storage.Directory, str], bytes]:
    rng = random.Random(os.getpid())

    def faulty(place: storage.Directory, name: str) -> bytes:
        draw = rng.random()
        if draw < FAULTY:
            raise TimeoutError(f"{name} did not come")
        if draw < 2 * FAULTY:
            time.sleep(1)
        return read(place, name)

    return faulty


def drive(directory: Path, address: str, workers: int) -> None:
    """One driver: fills the store that is under way."""
    corpus = prepared(directory / "corpus", directory / "pool.jsonl")
    store = store_for(corpus, directory / "store", ROWS)
    # As a script this module has another name than the one that workers find it by.
    from soak import Builder as Found

    with closing(RayEngine(Found(directory), address=address, workers=workers, gpu=False)) as engine:
        redone = extract(corpus, store, engine, max_length=CONTEXT)
    (directory / "redone").write_text(str(len(redone)))  # Ray writes to standard output, too


def resident(pid: int) -> int | None:
    """Bytes of memory that no file stands behind; None where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return None


class Soak:
    """The rounds, and what was seen in them."""

    def __init__(self, directory: Path, address: str, options: argparse.Namespace) -> None:
        self.directory, self.address, self.workers = directory, address, options.workers
        self.kill_every = options.kill_every
        self.rng = random.Random(options.seed)
        self.killed = {"worker": 0, "driver": 0}
        self.redone = self.rounds = self.shards = 0
        self.memory: dict[tuple[str, int], list[int]] = {}
        (directory / "workers").mkdir()
        write_checkpoint(directory / "checkpoint")
        write_jsonl(directory / "pool.jsonl", documents(options.documents, seed=options.seed))
        self.corpus = prepared(directory / "corpus", directory / "pool.jsonl")
        extracted(directory / "checkpoint", self.corpus, directory / "reference", ROWS)
        self.reference = files_below(directory / "reference")

    def round(self, until: float) -> None:
        """Fill a store under faults, and check it. Past `until` nothing more is killed."""
        shutil.rmtree(self.directory / "store", ignore_errors=True)
        while (code := self._driver(until)) != 0:
            assert code == -signal.SIGKILL, f"a driver that nobody killed ended with {code}"
        found = files_below(self.directory / "store")
        assert found == self.reference, sorted(found.keys() ^ self.reference.keys()) or "other bytes"
        store = store_for(self.corpus, self.directory / "store", ROWS)
        assert store.missing() == []
        assert store.samples()["id"].to_pylist() == self.corpus.index["id"].to_pylist()
        self.rounds += 1
        self.shards += store.num_shards
        print(f"round {self.rounds}: whole; so far {self.killed} killed, {self.redone} shards redone", flush=True)

    def _driver(self, until: float) -> int:
        command = [sys.executable, __file__, "--drive", str(self.directory), self.address, str(self.workers)]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        strike = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.kill_every
        while driver.poll() is None:
            time.sleep(0.5)
            alive = [int(path.name) for path in (self.directory / "workers").iterdir() if resident(int(path.name))]
            for kind, pid in [("driver", driver.pid), *(("worker", pid) for pid in alive)]:
                if (size := resident(pid)) is not None:
                    self.memory.setdefault((kind, pid), []).append(size)
            if strike < time.monotonic() < until and alive:
                strike = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.kill_every
                kind = "driver" if self.rng.random() < 1 / 3 else "worker"
                os.kill(driver.pid if kind == "driver" else self.rng.choice(alive), signal.SIGKILL)
                self.killed[kind] += 1
        if driver.returncode == 0:
            self.redone += int((self.directory / "redone").read_text())
        return driver.returncode

    def report(self, minutes: float) -> None:
        """Print what was seen."""
        print(f"{minutes:.1f} minutes, {self.rounds} rounds, {self.shards} shards: none lost, doubled or different")
        kills = ", ".join(f"{number} {kind}s" for kind, number in self.killed.items())
        print(f"killed: {kills}; begun again by drivers that lived: {self.redone} shards")
        for kind in ("driver", "worker"):
            lives = [sizes for (of, _), sizes in self.memory.items() if of == kind and len(sizes) >= 20]
            for sizes in sorted(lives, key=len)[-3:]:
                third = len(sizes) // 3
                early, late = (
                    sorted(part)[len(part) // 2] / 2**20 for part in (sizes[third : 2 * third], sizes[-third:])
                )
                print(f"memory of a {kind} over {len(sizes) / 2:.0f} s: {early:.0f} MiB midway, {late:.0f} MiB late")


def main() -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument(
        "--kill-every", type=float, default=10, metavar="S", help="seconds, half to one and a half of it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=3, metavar=("DIR", "ADDRESS", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Path(options.drive[0]), options.drive[1], int(options.drive[2]))
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])  # for the cluster's processes
    node = {"num_cpus": options.workers, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    with tempfile.TemporaryDirectory() as directory:
        started = time.monotonic()
        soak = Soak(Path(directory), cluster.address, options)
        while time.monotonic() - started < 60 * options.minutes:
            soak.round(started + 60 * options.minutes)
        soak.report((time.monotonic() - started) / 60)
    cluster.shutdown()


if __name__ == "__main__":
    main()
