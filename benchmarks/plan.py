"""Accuracy of `plan` against what `select` then takes: predicted over actual, of time, disk and memory.

    python benchmarks/plan.py [--out DIR] [--documents 2400] [--validation 320] [--sampled 1024] [--settings matching]

The demo's model and pool, and each part of a run; one thread. Time is the processor's, in which what else the machine
does hardly counts; plan and select are processes of their own, one after the other, so that each has a peak of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from direct_anneal.config.select import SelectConfig
from direct_anneal.demo import demo_model_path, write_demo_corpus
from direct_anneal.progress import Items, Silent, Work, showing
from direct_anneal.selection import planning, select

SETTINGS: dict[str, dict[str, Any]] = {
    "matching": {"sketch_size": 2048},
    "descent": {"sketch_size": 512, "max_length": 96},
    "energy": {"sketch_size": 512},
    "path": {"objective_options": {"learning_rates": (1e-3,), "num_folds": 0, "max_passes": 1.0}},  # as in the demo
}


class ProcessorTime(Silent):
    """Seconds of the processor by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(
        self,
        name: str,
        unit: str,  # noqa: ARG002
        total: int | None = None,  # noqa: ARG002
        items: Items | None = None,  # noqa: ARG002
        work: Work | None = None,  # noqa: ARG002
    ) -> Iterator[Callable[[int], object]]:
        started = time.process_time()
        yield lambda _: None
        self.seconds[name] = time.process_time() - started


def planned(options: dict[str, Any], num_sampled: int) -> dict[str, Any]:
    """Plan a run; what that took is "cost"."""
    torch.set_num_threads(1)
    planning.NUM_SAMPLED = num_sampled
    started = time.process_time()
    predicted = asdict(planning.estimated(SelectConfig(**options), clock=time.process_time))
    return predicted | {"cost": time.process_time() - started}


def selected(options: dict[str, Any], _: int) -> dict[str, Any]:
    """Do that run, and measure it."""
    torch.set_num_threads(1)
    progress = ProcessorTime()
    with showing(progress):
        select(**options)
    out = Path(options["out"])
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": progress.seconds,
        "disk": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "memory": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="keep documents and runs there")
    parser.add_argument("--documents", type=int, default=2400, help="of the pool")
    parser.add_argument("--validation", type=int, default=320, help="documents of the validation set")
    parser.add_argument("--sampled", type=int, default=planning.NUM_SAMPLED, help="documents of each that plan reads")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="objectives")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="plan-"))
    corpus = write_demo_corpus(out / "data", num_documents=arguments.documents, num_validation=arguments.validation)
    context = multiprocessing.get_context("spawn")
    for name in arguments.settings:
        options = {
            "model": str(demo_model_path()),
            "pool": [str(path) for path in corpus.pool],
            "validation": str(corpus.validation),
            "fraction": 0.2,
            "out": str(out / f"run-{name}"),
            "overwrite": True,
            "objective": name,
            **SETTINGS[name],
        }
        done = []
        for work in (planned, selected):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                done.append(pool.submit(work, options, arguments.sampled).result())
        predicted, actual = done
        taken = sum(actual["seconds"].values())
        print(f"{name}: predicted / actual (plan itself took {predicted['cost'] / taken:.2f} of select's time)")
        for stage, seconds in actual["seconds"].items():
            near = predicted["seconds"].get(stage, 0.0) / seconds
            print(f"  {stage:<32} {near:6.2f}   {seconds / taken:6.1%} of the time")
        print(f"  {'time':<32} {sum(predicted['seconds'].values()) / taken:6.2f}")
        left = sum(size for part, size in predicted["disk"].items() if part != planning.WHILE_WALKING)
        print(f"  {'disk at the end':<32} {left / actual['disk']:6.2f}")
        print(f"  {'memory':<32} {predicted['memory'] / actual['memory']:6.2f}", flush=True)


if __name__ == "__main__":
    main()
