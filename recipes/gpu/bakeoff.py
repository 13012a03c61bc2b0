"""The bake-off with larger models on one GPU, within a time that is given.

    python recipes/gpu/bakeoff.py --data DATA --cache CACHE --out OUT [--sizes 30m 100m] [--chooser CHECKPOINT]
    python recipes/gpu/bakeoff.py ... --device cpu --sizes 1m --steps 20 --pool 80   # a rehearsal

Everything runs side by side, so that the GPU is never idle while a process reads, solves or starts: the stable phases
of all sizes, and then one `direct-anneal compare` for each size and scenario. A small checkpoint (`--chooser`) chooses
in place of the large one for the arm `direct-by-small`. When the time is up, what still runs is stopped; OUT/runs.jsonl
has every run that was finished, and CACHE the rest, from where the same command goes on.
"""

from __future__ import annotations

import argparse
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

from scenarios import ARMS, recipe, write_recipe, write_scenarios  # noqa: E402
from stable_phase import PRECISION, SIZES, write_documents, write_new_model  # noqa: E402

FRACTION = 0.1
COMPARED = ("random", "direct", "quality-classifier", "gradient-cosine")


@dataclass
class Clock:
    """Runs commands until the time is up.

    Attributes:
        seconds: from the start of the program.
        logs: directory for what the commands say.
        device: of the commands.
    """

    seconds: float
    logs: Path
    device: str
    started: float = field(default_factory=time.monotonic)

    def run(self, name: str, *command: str | Path) -> bool:
        """Whether the command ended well in time; its output goes to a log of its own."""
        begun = self.now()
        with (self.logs / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # more would wait for each other
                start_new_session=True,
            )
            try:
                code = process.wait(max(0.0, self.seconds - begun))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers with it; nothing finished is lost by that
                process.wait()
                code = None
        outcome = "stopped" if code is None else "done" if code == 0 else f"failed ({code}), see its log"
        print(f"{begun:5.0f} to {self.now():5.0f} s  {name}: {outcome}", flush=True)
        return code == 0

    def now(self) -> float:
        return time.monotonic() - self.started


def bake(clock: Clock, size: str, scenarios: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """One size: its stable phase, then its comparisons side by side."""
    stable = [BAKEOFF / "stable_phase.py", "--data", given.data, "--cache", given.cache, "--size", size]
    steps = [] if given.steps is None else ["--steps", str(given.steps)]
    if not clock.run(f"stable-{size}", *stable, *steps, "--device", clock.device):
        return
    arms = {arm: ARMS[arm] for arm in COMPARED}
    if given.chooser is not None:
        arms["direct-by-small"] = {"select": {"model": str(given.chooser)}}
    with ThreadPoolExecutor() as threads:
        for name, files in scenarios.items():
            content = recipe(
                given.cache / f"stable-{size}", size, {name: files}, arms, given.seeds, [FRACTION], clock.device
            )
            path = write_recipe(given.cache / "gpu" / f"{size}-{name}.yaml", content)
            options = ["--out", path.with_suffix(""), "--workers", given.workers]
            threads.submit(clock.run, f"compare-{size}-{name}", "-m", "direct_anneal", "compare", path, *options)


def gather(directory: Path, out: Path) -> int:
    """All finished runs in one file; how many."""
    lines = [line for path in sorted(directory.glob("*/runs.jsonl")) for line in path.read_text().splitlines() if line]
    out.mkdir(parents=True, exist_ok=True)
    (out / "runs.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for path in sorted(directory.glob("*.log")):
        with (out / "logs.txt").open("a") as stream:
            stream.write(f"== {path.stem}\n{path.read_text()[-6000:]}\n")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with corpus/*.jsonl.zst")
    parser.add_argument("--cache", type=Path, required=True, help="documents, models and comparisons; needs gigabytes")
    parser.add_argument("--out", type=Path, required=True, help="finished runs and the ends of logs")
    parser.add_argument("--seconds", type=float, default=36000.0, help="after which everything is stopped")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["30m", "100m"])
    parser.add_argument("--scenarios", nargs="+", default=["mixed", "noisy", "clean"])
    parser.add_argument("--chooser", type=Path, help="a small checkpoint, for the arm direct-by-small")
    parser.add_argument("--steps", type=int, help="of the stable phases, other than each size's own")
    parser.add_argument("--pool", type=int, default=SIZES["30m"].pool, help="passages to choose from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="annealing runs side by side in each comparison")
    parser.add_argument("--device", choices=PRECISION, default="cuda")
    given = parser.parse_args()

    directory = given.cache / "gpu"
    directory.mkdir(parents=True, exist_ok=True)
    clock = Clock(given.seconds, directory, given.device)
    text = given.cache / "stable.jsonl"
    if not text.exists():
        write_documents(given.data, text)
    for size in given.sizes:
        start = given.cache / f"start-{size}"
        if not (start / "model.safetensors").exists():
            write_new_model(start, given.data, SIZES[size], 0)
    written = write_scenarios(given.data, directory, "test", given.pool)
    scenarios = {name: written[name] for name in given.scenarios}
    print(f"{clock.now():5.0f} s  documents and tokenizers are there", flush=True)
    with ThreadPoolExecutor() as threads:
        baked = [threads.submit(bake, clock, size, scenarios, given) for size in given.sizes]
    for each in baked:
        each.result()
    print(f"{gather(directory, given.out)} finished runs in {given.out / 'runs.jsonl'}")


if __name__ == "__main__":
    main()
