"""The bake-off with larger models on one GPU, within a time that is given.

    python recipes/gpu/bakeoff.py --data DATA --cache CACHE --out OUT [--sizes 30m 100m] [--chooser CHECKPOINT]
    python recipes/gpu/bakeoff.py ... --device cpu --sizes 1m --steps 20 --pool 80   # a rehearsal; its own CACHE

Everything runs side by side, so that the GPU is never idle while a process reads, solves or starts: the stable phases
of all sizes, and then one `direct-anneal compare` for each size and scenario. A small checkpoint (`--chooser`) chooses
in place of the large one for the arm `direct-by-small`. When the time is up, or at Ctrl-C, what still runs is killed;
OUT/runs.jsonl has every run that was finished, and CACHE the rest, from where the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BAKEOFF = Path(__file__).resolve().parent.parent / "bakeoff"
sys.path.insert(0, str(BAKEOFF))  # the same documents, models and arms as there

from scenarios import ARMS, SCENARIOS, recipe, write_recipe, write_scenarios  # noqa: E402
from stable_phase import PRECISION, SIZES, write_documents, write_new_model  # noqa: E402

FRACTION = 0.1
COMPARED = ("random", "direct", "quality-classifier", "gradient-cosine")


@dataclass
class Clock:
    """Runs commands until the time is up.

    Attributes:
        seconds: from when documents and tokenizers are there.
        logs: directory for what the commands say.
        device: of the commands.
    """

    seconds: float
    logs: Path
    device: str
    started: float = field(default_factory=time.monotonic)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(self, name: str, *command: str | Path) -> bool:
        """Whether the command ended well in time; its output goes to a log of its own."""
        begun = self.now()
        if begun >= self.seconds:
            print(f"{begun:5.0f} s  {name}: not begun", flush=True)
            return False
        with (self.logs / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # more would wait for each other
                start_new_session=True,
            )
        self.running.add(process)
        try:
            process.wait(self.seconds - begun)
        except subprocess.TimeoutExpired:
            kill(process)
        self.running.discard(process)
        outcome = {0: "done", -signal.SIGKILL: "stopped"}.get(process.wait(), f"failed ({process.returncode})")
        print(f"{begun:5.0f} to {self.now():5.0f} s  {name}: {outcome}", flush=True)
        return process.returncode == 0

    def stop(self) -> None:
        """Nothing more is begun, and what runs is killed."""
        self.seconds = 0.0
        for process in list(self.running):
            kill(process)

    def now(self) -> float:
        return time.monotonic() - self.started


def kill(process: subprocess.Popen[bytes]) -> None:
    """And its workers with it; nothing that was finished is lost by that."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def bake(clock: Clock, size: str, scenarios: dict[str, dict[str, Any]], given: argparse.Namespace) -> bool:
    """One size: its stable phase, then its comparisons side by side. Whether all of it is done."""
    stable = [BAKEOFF / "stable_phase.py", "--data", given.data, "--cache", given.cache, "--size", size]
    steps = [] if given.steps is None else ["--steps", str(given.steps)]
    if not clock.run(f"stable-{size}", *stable, *steps, "--device", clock.device):
        return False
    arms = {arm: ARMS[arm] for arm in COMPARED}
    if given.chooser is not None:
        arms["direct-by-small"] = {"select": {"model": str(given.chooser)}}
    compared = []
    with ThreadPoolExecutor() as threads:
        for name, files in scenarios.items():
            content = recipe(
                given.cache / f"stable-{size}", size, {name: files}, arms, given.seeds, [FRACTION], clock.device
            )
            path = write_recipe(given.cache / "gpu" / f"{size}-{name}.yaml", content)
            options = ["--out", path.with_suffix(""), "--workers", given.workers]
            command = ["-m", "direct_anneal", "compare", path, *options]
            compared.append(threads.submit(clock.run, f"compare-{size}-{name}", *command))
    return all(each.result() for each in compared)


def gather(directory: Path, out: Path) -> int:
    """All finished runs in one file, and the ends of all logs in another; how many runs."""
    whole = [
        line
        for path in sorted(directory.glob("*/runs.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut off
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "runs.jsonl").write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    logs = [f"== {path.stem}\n{path.read_text()[-6000:]}\n" for path in sorted(directory.glob("*.log"))]
    (out / "logs.txt").write_text("".join(logs), encoding="utf-8")
    return len(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with corpus/*.jsonl.zst")
    parser.add_argument("--cache", type=Path, required=True, help="documents, models and comparisons; needs gigabytes")
    parser.add_argument("--out", type=Path, required=True, help="finished runs and the ends of logs")
    parser.add_argument("--seconds", type=float, default=36000.0, help="for models, once documents are there")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["30m", "100m"])
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=["mixed", "noisy", "clean"])
    parser.add_argument("--chooser", type=Path, help="a small checkpoint, for the arm direct-by-small")
    parser.add_argument("--steps", type=int, help="of the stable phases, other than each size's own")
    parser.add_argument("--pool", type=int, default=SIZES["30m"].pool, help="passages to choose from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="annealing runs side by side in each comparison")
    parser.add_argument("--device", choices=PRECISION, default="cuda")
    given = parser.parse_args()

    directory = given.cache / "gpu"
    directory.mkdir(parents=True, exist_ok=True)
    text = given.cache / "stable.jsonl"
    if not text.exists():
        write_documents(given.data, text)
    for size in given.sizes:
        start = given.cache / f"start-{size}"
        if not (start / "model.safetensors").exists():
            write_new_model(start, given.data, SIZES[size], 0)
    written = write_scenarios(given.data, directory, "test", given.pool)
    scenarios = {name: written[name] for name in given.scenarios}
    clock = Clock(given.seconds, directory, given.device)
    with ThreadPoolExecutor() as threads:
        baked = [threads.submit(bake, clock, size, scenarios, given) for size in given.sizes]
        try:
            results = [each.result() for each in baked]
        except KeyboardInterrupt:
            clock.stop()
            results = [False]
    print(f"{gather(directory, given.out)} finished runs in {given.out / 'runs.jsonl'}")
    if not all(results):
        raise SystemExit("not all of it is done: logs.txt beside them says why, and the same command goes on")


if __name__ == "__main__":
    main()
