"""The proof on one GPU, within a given time: every scenario, arm, replay share and seed at one million parameters.

    python recipes/gpu/grid.py prepare --data DATA --checkpoint DIR --out CARRY        # anywhere: documents and model
    python recipes/gpu/grid.py run --carry CARRY --out OUT --seconds 1200 [--scenarios test/science ...]
    python recipes/gpu/grid.py run ... --device cpu --seeds 1 --limit 4                # a rehearsal; its own WORK
    python recipes/gpu/tables.py OUT/runs.jsonl                                        # what came of it

`run` needs nothing beside CARRY. What needs the package's own selection (its objectives, the gradients of influence)
is chosen in processes of their own, one a scenario, while the GPU walks paths; then runs are trained side by side in
stacks (see stacked.py). A finished run is a line of OUT/runs.jsonl at once, in the form that `compare` writes; the
same command goes on with what is missing. A scenario is scored when its turn comes and its first runs follow at once,
so that the end of the time cuts scenarios, seeds and replay shares by their worth.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers.utils import logging

GPU = Path(__file__).resolve().parent
sys.path[:0] = [str(GPU), str(GPU.parent / "bakeoff"), str(GPU.parents[1] / "src")]

from choosing import PRODUCT_ARMS, begin_choosers, choose  # noqa: E402
from scenario import BATCH, WINDOW, Bench, Cell, Packing  # noqa: E402
from scenarios import write_scenarios  # noqa: E402
from splits import write_jsonl  # noqa: E402
from stable_phase import SIZES  # noqa: E402
from stacked import Llama, Training, Weights, load, load_moments, stacked, text_losses, train  # noqa: E402

from direct_anneal.model.checkpoint import Checkpoint  # noqa: E402

STACK_TOKENS = 163_840  # of a training step over all runs of a stack
SCORE_TOKENS = 262_144
PATH_RATE = 1e-3
UNIQUE = (0.05, 0.2, 0.5, 1.0)
REPLAY = (0.0, 0.25, 0.5, 0.7)
LEADING = ("random", "path: drop, no damage", "path + influence: ranks, no damage", "influence", "quality-classifier")


def prepare(given: argparse.Namespace) -> None:
    """Write everything that `run` needs: scenarios and checkpoint. Paths are relative to CARRY, files compressed."""
    out: Path = given.out
    size = given.pool or SIZES["1m"].pool
    content = {
        f"{role}/{name}": scenario
        for role in ("test", "development")
        for name, scenario in write_scenarios(given.data, out / "documents", role, size).items()
    }
    for scenario in content.values():
        for role in ("pool", "validation", "held_out"):
            scenario[role] = [_packed(Path(path), out) for path in scenario[role]]
        if "choices" in scenario:
            scenario["choices"] = _packed(Path(scenario["choices"]), out)
    write_jsonl(out / "scenarios.json", [content])
    (out / "model").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "optimizer.pt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(given.checkpoint / name, out / "model" / name)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{total / 2**20:.1f} MiB in {out}")


def _packed(source: Path, out: Path) -> str:
    target = source.with_suffix(".jsonl.zst")
    if source.exists():
        with pa.CompressedOutputStream(str(target), "zstd") as stream:
            stream.write(source.read_bytes())
        source.unlink()
    return str(target.relative_to(out))


def missing(benches: dict[str, Bench], seeds: int, begun: set[Any], size: int) -> tuple[int, list[Cell]]:
    """The next stack: the first scenario of the worthiest round that lacks runs, by the arms that are there by now.

    Returns:
        the round's number, and its cells: none where nothing is left.
    """
    tests = [name for name in benches if name.startswith("test/")]
    others = [name for name in benches if not name.startswith("test/")]
    few, many = range(min(2, seeds)), range(seeds)
    rounds: list[tuple[list[str], range, tuple[float, ...]]] = [
        (list(benches), few, (0.0, 0.5)),
        (tests, many, (0.0, 0.5)),
        (tests, many, REPLAY),
        (others, many, REPLAY),
    ]
    for number, (names, of_seeds, shares) in enumerate(rounds):
        for name in names:
            cells = [
                Cell(name, arm, share, seed)
                for seed in of_seeds
                for share in shares
                for arm in benches[name].arms()
                if arm != "whole pool" or share == 0.0  # with more of itself beside it, it is the same run again
            ]
            left = [cell for cell in cells if cell.key not in begun]
            if left:
                return number, left[:size]
    for name in tests:
        arms = [arm for arm in LEADING if arm in benches[name].arms()]
        cells = [Cell(name, arm, 0.0, seed, share) for seed in few for share in UNIQUE for arm in arms]
        left = [cell for cell in cells if cell.key not in begun]
        if left:
            return len(rounds), left[:size]
    return len(rounds), []


@dataclass
class Stack:
    """Runs that are trained side by side, and their windows as they are made."""

    bench: Bench
    cells: list[Cell]
    rows: list[NDArray[np.int64]]
    windows: list[Future[NDArray[np.uint16]]]


@dataclass
class Grid:
    """The state of `run`.

    Attributes:
        given: the command's options.
        model, weights, moments: of the checkpoint.
        benches: scenarios that are scored.
        waiting: names of those that are not.
        begun: keys of the runs that are done or under way.
    """

    given: argparse.Namespace
    model: Llama
    weights: Weights
    moments: tuple[Weights, Weights, float]
    separator: int | None
    waiting: list[str]
    openers: ProcessPoolExecutor
    packers: ProcessPoolExecutor
    opened: dict[str, Future[Bench]]
    begun: set[Any]
    benches: dict[str, Bench] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        seconds: float = self.given.seconds
        return seconds - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        """With the time since the start."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def score(self, name: str) -> None:
        """Score a scenario's documents, and the checkpoint on its held-out texts."""
        given = self.given
        try:
            bench = self.opened[name].result()
            training = Training(learning_rate=PATH_RATE)
            bench.score(self.model, self.weights, self.separator, training, given.score_tokens)
            cell = Cell(name, "before", 0.0, 0, 0.0)
            if cell.key not in self.begun:
                self.keep(bench.lines([cell], [], *self.evaluated(stacked(self.weights, 1), bench), 0.0, given.name))
        except Exception as error:  # one scenario that fails must not take the others along
            self.say(f"{name} failed: {error!r}")
            return
        self.benches[name] = bench
        self.say(f"{name}: {bench.pool.num_samples} documents scored along paths")

    def next_stack(self) -> Stack | None:
        """Return what is worthiest now; scores further scenarios once the first runs of all others are under way."""
        given = self.given
        for bench in self.benches.values():
            bench.gather()
        size = max(1, given.stack_tokens // (BATCH * WINDOW))
        number, cells = missing(self.benches, given.seeds, self.begun, size)
        while self.waiting and (number > 0 or not cells):
            self.score(self.waiting.pop(0))
            number, cells = missing(self.benches, given.seeds, self.begun, size)
        if not cells:
            return None
        self.begun.update(cell.key for cell in cells)
        bench = self.benches[cells[0].scenario]
        rows = [bench.chosen(cell) for cell in cells]
        windows = [
            self.packers.submit(
                Packing(
                    carry=given.carry,
                    work=given.work,
                    scenario=cell.scenario,
                    rows=chosen,
                    replay=cell.replay,
                    count=bench.steps * BATCH,
                    separator=self.separator,
                    seed=cell.seed,
                ).windows
            )
            for cell, chosen in zip(cells, rows, strict=True)
        ]
        return Stack(bench, cells, rows, windows)

    def work_off(self, stack: Stack, windows: NDArray[np.uint16]) -> None:
        """Train, score and write a stack; one that does not fit is cut in two."""
        begun = time.monotonic()
        try:
            of = stacked(self.weights, len(stack.cells))
            training = Training(learning_rate=self.given.rate)
            train(self.model, of, windows, training, batch=BATCH, moments=self.moments)
            trained = time.monotonic() - begun
            found = self.evaluated(of, stack.bench)
        except torch.OutOfMemoryError:
            half = len(stack.cells) // 2
            if not half:
                raise
            self.say(f"{len(stack.cells)} runs do not fit side by side")
            for part in (slice(None, half), slice(half, None)):
                self.work_off(Stack(stack.bench, stack.cells[part], stack.rows[part], []), windows[part])
            return
        self.keep(stack.bench.lines(stack.cells, stack.rows, *found, trained, self.given.name))

    def evaluated(self, of: Weights, bench: Bench) -> tuple[Any, Any]:
        """Nats of held-out texts, and of answers to choose from."""
        options: dict[str, Any] = {"window": WINDOW, "batch_tokens": self.given.score_tokens}
        nats = text_losses(self.model, of, bench.texts, **options)
        return nats, text_losses(self.model, of, bench.answers, **options) if bench.answers else None

    def keep(self, lines: Iterator[dict[str, Any]]) -> None:
        """Append lines, on the disk before anything else happens."""
        with (self.given.out / "runs.jsonl").open("a", encoding="utf-8") as stream:
            for line in lines:
                stream.write(json.dumps(line) + "\n")
                self.begun.add(key_of(line))
            stream.flush()
            os.fsync(stream.fileno())


def run(given: argparse.Namespace) -> None:
    """Everything, until the time is up."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU
    given.carry, given.work = given.carry.resolve(), given.work.resolve()
    for directory in (given.out, given.work):
        directory.mkdir(parents=True, exist_ok=True)
    wanted = tuple(given.scenarios or ("",))
    names = [name for name in json.loads((given.carry / "scenarios.json").read_text()) if name.startswith(wanted)]
    choosers = begin_choosers(Path(__file__), given.carry, given.work, names, given.device, given.choosers)
    context = get_context("spawn")
    openers, packers = (ProcessPoolExecutor(given.processes, mp_context=context) for _ in range(2))
    directory = given.carry / "model"
    model, weights = load(directory, given.device)
    results = given.out / "runs.jsonl"
    known = results.read_text(encoding="utf-8").split("\n")[:-1] if results.exists() else []
    grid = Grid(
        given=given,
        model=model,
        weights=weights,
        moments=load_moments(directory / "optimizer.pt", weights),
        separator=Checkpoint(str(directory)).separator,
        waiting=sorted(names, key=lambda name: not name.startswith("test/")),  # the test's first
        openers=openers,
        packers=packers,
        opened={name: openers.submit(Bench, given.carry, given.work, name, given.limit) for name in names},
        begun={key_of(json.loads(line)) for line in known},
    )
    grid.say(f"model of {sum(value.numel() for value in weights.values()):,} parameters on {given.device}")
    ahead, count, longest = grid.next_stack(), 0, 0.0
    while grid.left > 1.2 * longest + 2:
        if ahead is None:
            ended = len(choosers) == len(names) and all(one.poll() is not None for one in choosers.values())
            time.sleep(0.0 if ended else 0.5)
            ahead = grid.next_stack()
            if ended and ahead is None:
                break
            continue
        stack, ahead = ahead, grid.next_stack()  # its windows are made while this one is trained
        begun = time.monotonic()
        grid.work_off(stack, np.stack([future.result() for future in stack.windows]))
        took = time.monotonic() - begun
        longest, count = max(longest, took), count + len(stack.cells)
        grid.say(f"{stack.bench.name}: {len(stack.cells)} runs in {took:.1f} s, {count} in all")
    for process in choosers.values():
        process.kill()
    save_scores(grid.benches, given.out / "scores.npz")
    logs = [f"== {path.stem}\n{path.read_text()[-3000:]}\n" for path in sorted(given.work.glob("*.log"))]
    (given.out / "logs.txt").write_text("".join(logs))
    grid.say(f"{count} runs; {results}")
    os._exit(0)  # what the other processes hold does not count


def save_scores(benches: dict[str, Bench], path: Path) -> None:
    """Every arm's scores, choices and the pool's losses, to look at later: one file."""
    found: dict[str, Any] = {}
    for name, bench in benches.items():
        found[f"{name}|ids"] = np.array(bench.pool.index["id"].to_pylist())
        found[f"{name}|fine"] = bench.fine
        found |= {f"{name}|loss:{key}": value.astype(np.float32) for key, value in vars(bench.paths).items()}
        found |= {f"{name}|score:{key}": value.astype(np.float32) for key, value in bench.scores.items()}
        found |= {f"{name}|rows:{key}": rows.astype(np.int32) for key, rows in bench.rows.items()}
    np.savez_compressed(path, **found)


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """A line's cell, as `Cell.key` has it."""
    return line["scenario"], line["arm"], line["replay"], line["seed"], line["fraction"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--checkpoint", type=Path, required=True, help="directory with weights, tokenizer, optimizer.pt")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--pool", type=int, help="passages to choose from")
    one.set_defaults(command=prepare)
    two = commands.add_parser("choose")
    two.add_argument("--carry", type=Path, required=True)
    two.add_argument("--work", type=Path, required=True)
    two.add_argument("--name", required=True)
    two.add_argument("--device", default="cuda")
    two.add_argument("--arms", nargs="+", default=list(PRODUCT_ARMS))
    two.set_defaults(command=lambda given: choose(given.carry, given.work, given.name, given.device, given.arms))
    three = commands.add_parser("run")
    three.add_argument("--carry", type=Path, required=True)
    three.add_argument("--out", type=Path, required=True)
    three.add_argument("--work", type=Path, default=Path("grid-work"), help="what is not kept")
    three.add_argument("--seconds", type=float, default=1200.0)
    three.add_argument("--scenarios", nargs="+", help="names, or beginnings of names")
    three.add_argument("--seeds", type=int, default=5)
    three.add_argument("--rate", type=float, default=3e-3, help="of the checkpoint's stable phase")
    three.add_argument("--name", default="1m", help="the model's, in the lines")
    three.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    three.add_argument("--processes", type=int, default=4, help="that open scenarios, and as many that pack windows")
    three.add_argument("--choosers", type=int, default=8, help="scenarios that the package chooses in at once")
    three.add_argument("--stack-tokens", type=int, default=STACK_TOKENS)
    three.add_argument("--score-tokens", type=int, default=SCORE_TOKENS)
    three.add_argument("--limit", type=int, help="held-out texts of a domain, for a rehearsal")
    three.set_defaults(command=run)
    given = parser.parse_args()
    given.command(given)


if __name__ == "__main__":
    main()
