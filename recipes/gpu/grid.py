"""The proof on one GPU, within a given time: every scenario, arm, replay share and seed at one million parameters.

    python recipes/gpu/grid.py prepare --data DATA --checkpoint DIR --out CARRY        # anywhere: documents and model
    python recipes/gpu/grid.py run --carry CARRY --out OUT --seconds 540 [--device cpu --pool 200 --seeds 1]

`run` needs nothing beside CARRY. What needs the package's own selection (its objectives, the gradients of influence)
is chosen in processes of their own, one a scenario, while the GPU walks paths; then runs are trained side by side in
stacks (see stacked.py). A finished run is a line of OUT/runs.jsonl at once, in the form that `compare` writes; the
same command goes on with what is missing. The first rounds cover every scenario, so that the end of the time cuts
seeds and replay shares, not scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BAKEOFF = Path(__file__).resolve().parent.parent / "bakeoff"
sys.path[:0] = [str(BAKEOFF), str(Path(__file__).resolve().parent), str(BAKEOFF.parents[1] / "src")]

WINDOW, BATCH, FRACTION, TOKENS = 256, 8, 0.1, 0.2
STACK_TOKENS = 163_840  # of a training step over all runs of a stack
SCORE_TOKENS = 262_144
CHOICE_ITEMS = 500
# Of the package's own selection: by name, the options of `select`.
PRODUCT_ARMS: dict[str, dict[str, Any]] = {
    "path": {"objective": "path"},
    "matching": {"objective": "matching"},
    "energy": {"objective": "energy", "budget_ratio": 0.1, "relax_budget": True},
}
UNIQUE = (0.05, 0.2, 0.5, 1.0)
REPLAY = (0.0, 0.25, 0.5, 0.7)
LEADING = ("random", "path: drop over folds", "path + influence: ranks", "influence", "quality-classifier")


@dataclass
class Clock:
    """Time since the start, and what is left of it."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{self.now:6.1f} s  {text}", flush=True)

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.now


def prepare(given: argparse.Namespace) -> None:
    """Write everything that `run` needs: scenarios, checkpoint, and the rest of its stable phase."""
    from scenarios import write_scenarios
    from splits import write_jsonl
    from stable_phase import SIZES

    out: Path = given.out
    files = out / "documents"
    content = {}
    for role in ("test", "development"):
        for name, scenario in write_scenarios(given.data, files, role, given.pool or SIZES["1m"].pool).items():
            content[f"{role}/{name}"] = scenario
    # Paths relative to CARRY, and compressed: the machine that runs this is elsewhere.
    import pyarrow as pa

    def packed(path: str) -> str:
        source = Path(path)
        target = source.with_suffix(".jsonl.zst")
        if source.exists():
            with pa.CompressedOutputStream(str(target), "zstd") as stream:
                stream.write(source.read_bytes())
            source.unlink()
        return str(target.relative_to(out))

    for scenario in content.values():
        for role in ("pool", "validation", "held_out"):
            scenario[role] = [packed(path) for path in scenario[role]]
        if "choices" in scenario:
            scenario["choices"] = packed(scenario["choices"])
    write_jsonl(out / "scenarios.json", [content])
    (out / "model").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "optimizer.pt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(given.checkpoint / name, out / "model" / name)
    if given.stable is not None:
        _prepare_stable(given.stable, given.stable_steps, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{size / 2**20:.1f} MiB in {out}")


def _prepare_stable(text: Path, steps: int, out: Path) -> None:
    """The windows of so many more steps of the stable phase, of its own documents."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    needed, tokens = steps * BATCH * WINDOW, list[int]()
    lines = text.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for i in np.random.default_rng(1).permutation(len(lines)):
        tokens += tokenizer(json.loads(lines[i])["text"])["input_ids"]
        if len(tokens) >= needed:
            break
    windows = np.array(tokens[:needed], dtype=np.uint16).reshape(-1, WINDOW)
    np.savez_compressed(out / "stable.npz", windows=windows[: len(windows) // BATCH * BATCH])


# What the package itself chooses, in a process for each scenario.


def choose(carry: Path, work: Path, name: str, device: str, arms: list[str]) -> None:
    """Write WORK/choices/NAME.npz: the rows that the package's arms choose, and scores of its baselines."""
    from direct_anneal.baselines import BASELINES, Candidates
    from direct_anneal.compare.config import Arm, Recipe, Scenario
    from direct_anneal.compare.scenario import Choices

    path = work / "choices" / f"{slug(name)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = dict(np.load(path)) if path.exists() else {}

    def keep(key: str, values: NDArray[Any], seconds: float) -> None:
        found[key], found[f"{key}:seconds"] = values, np.array(seconds)
        with path.with_suffix(".part").open("wb") as stream:
            np.savez(stream, **found)
        path.with_suffix(".part").replace(path)

    pool, validation = (
        open_corpus(carry, work, name, role, carry / "model", "texts") for role in ("pool", "validation")
    )
    for baseline in ("quality-classifier", "dsir"):
        started = time.monotonic()
        scores = BASELINES[baseline].score(Candidates(pool, validation, "text", None), 0)
        keep(f"score:{baseline}", scores, time.monotonic() - started)

    _await(work / "model")
    scenario = json.loads((carry / "scenarios.json").read_text())[name]
    files = {role: tuple(str(carry / path) for path in scenario[role]) for role in ("pool", "validation", "held_out")}
    target = Scenario(name=slug(name), target=tuple(scenario["target"]), **files)
    options = {"device": device, **({"batch_tokens": 16384} if device != "cpu" else {})}
    choosing = [Arm(name=arm, select=PRODUCT_ARMS[arm]) for arm in arms]
    influence = Arm(name="influence", baseline="influence")
    recipe = Recipe(model=str(work / "model"), scenarios=(target,), arms=(*choosing, influence), select=options)
    choices = Choices(recipe, target, work / "scenarios" / slug(name), print)
    ids = np.array(choices.pool.index["id"].to_pylist(), dtype=object)
    started = time.monotonic()
    features = choices.with_features(influence)
    gradients = choices.gradients(features)
    candidates = Candidates(choices.pool, choices.validation, "text", gradients)
    keep("score:influence", BASELINES["influence"].score(candidates, 0), time.monotonic() - started)
    for arm in choosing:
        try:
            choice = choices.choice(arm, FRACTION, 0, "grid")
        except Exception as error:  # one arm that fails must not take the others along
            print(f"{name}: {arm.name} failed: {error!r}", flush=True)
            continue
        chosen = {json.loads(line)["id"] for file in choice.files for line in _lines(Path(file))}
        keep(f"rows:{arm.name}", np.flatnonzero([i in chosen for i in ids]), choice.seconds)
    keep("done", np.array(1), 0.0)


def _await(path: Path) -> None:
    """Until a directory is there: it is renamed into place when it is whole."""
    while not path.exists():
        time.sleep(0.1)


def _lines(path: Path) -> list[str]:
    import pyarrow as pa

    kind = "zstd" if path.suffix == ".zst" else None
    with pa.input_stream(str(path), compression=kind) as stream:
        return [line for line in stream.read().decode().split("\n") if line.strip()]


# The grid itself.


@dataclass(frozen=True)
class Cell:
    """One run."""

    scenario: str
    arm: str
    replay: float
    seed: int
    fraction: float = FRACTION

    @property
    def key(self) -> tuple[Any, ...]:
        return self.scenario, self.arm, self.replay, self.seed, self.fraction


def open_corpus(carry: Path, work: Path, name: str, role: str, model: Path, part: str = "corpora") -> Any:
    """A scenario's pool or validation set; tokens lie in WORK/PART, and are used again."""
    from direct_anneal.data import Fields, TokenLayout, expand, prepare
    from direct_anneal.model.checkpoint import Checkpoint

    checkpoint = Checkpoint(str(model))
    scenario = json.loads((carry / "scenarios.json").read_text())[name]
    return prepare(
        expand(
            [str(carry / path) for path in scenario[role]],
            role,
            TokenLayout.of(checkpoint.vocab_size, checkpoint.separator),
        ),
        role=role,
        fields=Fields(),
        load_tokenizer=checkpoint.load_tokenizer,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=WINDOW,
        directory=work / part / slug(name) / role,
    )


def slug(name: str) -> str:
    """A scenario's name as a file's."""
    return name.replace("/", "-").replace(" ", "-")


@dataclass(frozen=True)
class Packing:
    """The windows of one run, made in a worker that keeps the corpora it has opened."""

    carry: Path
    work: Path
    model: Path
    scenario: str
    rows: NDArray[np.int64]
    replay: float
    count: int
    separator: int | None
    seed: int

    def windows(self) -> NDArray[np.uint16]:
        from streams import stream

        if self.scenario not in _OPENED:
            _OPENED[self.scenario] = open_corpus(self.carry, self.work, self.scenario, "pool", self.model)
        return stream(
            _OPENED[self.scenario],
            self.rows,
            replay=self.replay,
            num_windows=self.count,
            window=WINDOW,
            separator=self.separator,
            seed=self.seed,
        )


_OPENED: dict[str, Any] = {}


class Bench:
    """One scenario's documents, scores and held-out texts."""

    def __init__(self, carry: Path, work: Path, name: str, model: Path, limit: int | None) -> None:
        from stacked import Text

        from direct_anneal.baselines import Candidates
        from direct_anneal.model.checkpoint import Checkpoint
        from direct_anneal.path.damage import (
            FEWEST_HEAD_TOKENS,
            HEAD_TOKENS,
            common_shares,
            repeated_share,
            shuffled,
            word_starts,
        )

        self.name, self.carry, self.work = name, carry, work
        self.scenario = json.loads((carry / "scenarios.json").read_text())[name]
        self.choices_path = work / "choices" / f"{slug(name)}.npz"
        self.pool, self.validation = (open_corpus(carry, work, name, role, model) for role in ("pool", "validation"))
        self.candidates = Candidates(self.pool, self.validation, "text", None)
        self.domains = np.array(self.pool.index["domain"].to_pylist(), dtype=object)
        self.budget = max(2, round(FRACTION * int(self.pool.num_tokens.sum())))
        self.steps = max(1, round(TOKENS / FRACTION * self.budget / (BATCH * WINDOW)))
        checkpoint = Checkpoint(str(model))
        tokenizer = checkpoint.load_tokenizer()
        records = [json.loads(line) for path in self.scenario["held_out"] for line in _lines(carry / path)]
        if limit:
            counts: dict[str, int] = {}
            kept = []
            for record in records:
                counts[record["domain"]] = counts.get(record["domain"], 0) + 1
                if counts[record["domain"]] <= limit:
                    kept.append(record)
            records = kept
        self.held_out = np.array([record["domain"] for record in records], dtype=object)
        self.num_bytes = np.array([len(record["text"].encode()) for record in records], dtype=np.int64)

        def text(prompt: str, answer: str) -> Any:
            # The answer begins with a space, where this tokenizer cuts in any case: prompts are prefixes of the whole.
            given = len(tokenizer(prompt)["input_ids"]) if prompt else 1
            return Text(np.array(tokenizer(prompt + answer)["input_ids"], dtype=np.int64), given)

        self.texts = [text(record.get("prompt", ""), record["text"]) for record in records]
        self.items: list[tuple[int, list[int]]] = []  # right answer, bytes of each
        self.answers: list[Any] = []
        if "choices" in self.scenario:
            for line in _lines(carry / self.scenario["choices"])[: min(CHOICE_ITEMS, limit or CHOICE_ITEMS)]:
                item = json.loads(line)
                self.items.append((item["right"], [len(answer.encode()) for answer in item["answers"]]))
                self.answers += [text(item["prompt"], answer) for answer in item["answers"]]
        starts = word_starts(tokenizer, checkpoint.vocab_size)
        contents = [self.pool.tokens(i) for i in range(self.pool.num_samples)]
        ids = self.pool.index["id"].to_pylist()
        self.repeated = np.array([repeated_share(tokens) for tokens in contents])
        self.common = common_shares(self.pool)
        self.told = self.pool.num_tokens >= FEWEST_HEAD_TOKENS
        self.heads = [Text(tokens[:HEAD_TOKENS], 1) for tokens in contents]
        self.mixed = [Text(shuffled(head.tokens, starts, name), 1) for head, name in zip(self.heads, ids, strict=True)]
        self.scores: dict[str, NDArray[np.float64]] = {}
        self.rows: dict[str, NDArray[np.int64]] = {}
        self.gathered = 0  # when the package's choices that are known were written
        self.seconds: dict[str, float] = {}

    def score(self, model: Any, weights: Any, separator: int | None, training: Any, batch_tokens: int) -> None:
        """Walk the paths, take losses and embeddings; the arms that need the package's own come in `gathered`."""
        from scoring import embeddings, forms, walk
        from stacked import stacked, text_losses

        started = time.monotonic()
        self.paths = walk(
            model,
            weights,
            self.pool,
            self.validation,
            window=WINDOW,
            separator=separator,
            batch_tokens=batch_tokens,
            training=training,
        )
        self.scores |= forms(self.paths, None)
        self.path_seconds = time.monotonic() - started
        heads = text_losses(
            model, stacked(weights, 1), [*self.heads, *self.mixed], window=WINDOW, batch_tokens=batch_tokens
        )[0]
        count = len(self.heads)
        order = np.where(self.told, 1 - heads[:count] / np.maximum(heads[count:], 1e-9), 1.0)
        # As the objective `path` leaves it out by default.
        self.fine = (self.repeated <= 0.5) & (self.common <= 0.7) & (order >= 0.05)
        own = embeddings(model, weights, self.pool, WINDOW, batch_tokens)
        target = embeddings(model, weights, self.validation, WINDOW, batch_tokens)
        self.scores["embedding similarity"] = _cosine(own, target).max(1)
        self.crisp = _cluster_weights(own, target)
        self.scores["path: drop, no damage"] = np.where(self.fine, self.scores["path: drop over folds"], np.nan)

    def gather(self) -> None:
        """Take over what the package's process has found since it was last asked."""
        from scoring import forms

        written = self.choices_path.stat().st_mtime_ns if self.choices_path.exists() else 0
        if written == self.gathered:
            return
        self.gathered = written
        found = dict(np.load(self.choices_path))
        for name in ("influence", "quality-classifier", "dsir"):
            if f"score:{name}" in found:
                self.scores[name] = found[f"score:{name}"]
                self.seconds[name] = float(found[f"score:{name}:seconds"])
        if "influence" in self.scores:
            self.scores |= forms(self.paths, self.scores["influence"])
            for name in ("path + influence: ranks", "path + influence: standardised"):
                self.scores[f"{name}, no damage"] = np.where(self.fine, self.scores[name], np.nan)
        own = [key for key in found if key.startswith("rows:") and not key.endswith(":seconds")]
        self.rows = {key.removeprefix("rows:"): found[key] for key in own}
        self.seconds |= {key.removeprefix("rows:"): float(found[f"{key}:seconds"]) for key in own}

    def arms(self) -> list[str]:
        return ["random", "whole pool", *self.scores, *self.rows, "cluster histogram"]

    def chosen(self, cell: Cell) -> NDArray[np.int64]:
        """Rows of the pool that an arm chooses."""
        from direct_anneal.baselines import take
        from direct_anneal.baselines.plain import random

        if cell.arm == "whole pool":
            return np.arange(self.pool.num_samples)
        if cell.arm in self.rows:
            return self.rows[cell.arm].astype(np.int64)
        if cell.arm == "random":
            scores = random(self.candidates, cell.seed)
        elif cell.arm == "cluster histogram":
            uniform = np.clip(random(self.candidates, cell.seed), 1e-12, 1 - 1e-12)
            scores = self.crisp - np.log(-np.log(uniform))
        else:
            scores = self.scores[cell.arm]
        total = int(self.pool.num_tokens.sum())
        return np.flatnonzero(take(scores, self.candidates, num_tokens=max(2, round(cell.fraction * total))))

    def _selection_seconds(self, arm: str) -> float:
        """What an arm's choice took: its walks of all paths together, the package's own process, or nothing."""
        walked = self.path_seconds if arm.startswith(("path", "conditional")) else 0.0
        return walked + self.seconds.get("influence" if "influence" in arm else arm, 0.0)

    def lines(
        self, cells: list[Cell], rows: list[NDArray[np.int64]], nats: Any, answer_nats: Any, seconds: float, model: str
    ) -> Iterator[dict[str, Any]]:
        """One line of runs.jsonl for each run of a stack."""
        target, aside = list(self.scenario["target"]), self.scenario.get("aside", [])
        for run, cell in enumerate(cells):
            by_domain = {}
            for name in sorted(set(self.held_out.tolist())):
                own = self.held_out == name
                by_domain[name] = float(nats[run][own].sum() / np.log(2) / self.num_bytes[own].sum())
            others = [value for name, value in by_domain.items() if name not in (*target, *aside)]
            line: dict[str, Any] = {
                "scenario": cell.scenario,
                "model": model,
                "target": target,
                "aside": list(aside),
                "arm": cell.arm,
                "seed": cell.seed,
                "fraction": cell.fraction if cell.arm != "before" else 0.0,
                "replay": cell.replay,
                "target_bpb": float(np.mean([by_domain[name] for name in target])),
                "others_bpb": float(np.mean(others)),
                "macro_bpb": float(np.mean([value for name, value in by_domain.items() if name not in aside])),
                "domain_bpb": by_domain,
                "training_seconds": round(seconds / len(cells), 3),
                "trained_tokens": self.steps * BATCH * WINDOW if cell.arm != "before" else 0,
                "selection_seconds": round(self._selection_seconds(cell.arm), 3),
            }
            if self.items:
                line["accuracy"] = _accuracy(self.items, answer_nats[run])
                line["chance"] = sum(1 / len(sizes) for _, sizes in self.items) / len(self.items)
            if len(rows):
                names, counts = np.unique(self.domains[rows[run]], return_counts=True)
                line["chosen_domains"] = dict(zip(names.tolist(), counts.tolist(), strict=True))
                line["num_documents"] = len(rows[run])
                line["num_tokens"] = int(self.pool.num_tokens[rows[run]].sum())
            yield line


def _accuracy(items: list[tuple[int, list[int]]], nats: NDArray[np.float64]) -> float:
    """The share of items whose right answer has the fewest nats a byte."""
    place, right = 0, 0
    for answer, sizes in items:
        own = nats[place : place + len(sizes)] / np.array(sizes)
        right += int(np.argmin(own)) == answer
        place += len(sizes)
    return right / len(items)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = one.mean(0)
    centred = [each - mean for each in (one, other)]
    units = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in centred]
    found: NDArray[np.float64] = units[0] @ units[1].T
    return found


def _cluster_weights(pool: NDArray[np.float64], target: NDArray[np.float64], clusters: int = 64) -> Any:
    """Log of target over pool share of each document's cluster of embeddings."""
    from scipy.cluster.vq import kmeans2

    count = min(clusters, max(2, len(pool) // 20))
    centres, own = kmeans2(pool, count, minit="++", seed=0, iter=25)
    nearest = ((target[:, None] - centres[None]) ** 2).sum(2).argmin(1)
    shares = [np.bincount(labels, minlength=count) / len(labels) for labels in (nearest, own)]
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(shares[0][own]) - np.log(shares[1][own]), -50.0)


def missing(benches: dict[str, Bench], seeds: int, begun: set[Any], size: int) -> tuple[int, list[Cell]]:
    """The next stack: the first scenario of the worthiest round that lacks runs, by the arms that are there by now.

    Returns:
        the round's number, and its cells: none where nothing is left.
    """
    tests = [name for name in benches if name.startswith("test/")]
    others = [name for name in benches if not name.startswith("test/")]
    few, many = range(min(2, seeds)), range(seeds)
    rounds: list[tuple[list[str], range, tuple[float, ...]]] = [
        (tests, few, (0.0, 0.5)),
        (others, few, (0.0, 0.5)),
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


def run(given: argparse.Namespace) -> None:
    """Everything, until the time is up."""
    clock = Clock(given.seconds)
    import torch
    from stacked import Training, load, load_moments, stacked, text_losses, train
    from transformers.utils import logging

    from direct_anneal.model.checkpoint import Checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device: str = given.device
    torch.set_num_threads(max(1, given.threads))
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    given.out.mkdir(parents=True, exist_ok=True)
    carry, work = given.carry.resolve(), given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = [name for name in json.loads((carry / "scenarios.json").read_text()) if _wanted(name, given.scenarios)]

    # The stable phase goes on to its end, and then everything starts from there.
    start = work / "model"
    choosers = _begin_choosers(carry, work, names, given)
    context = get_context("spawn")
    pool = ProcessPoolExecutor(given.processes, mp_context=context)
    opened = {name: pool.submit(Bench, carry, work, name, carry / "model", given.limit) for name in names}
    if not start.exists():
        _stable(carry, work, clock, given)
    model, weights = load(start, device)
    moments = load_moments(start / "optimizer.pt", weights)
    checkpoint = Checkpoint(str(start))
    clock.say(f"model of {sum(value.numel() for value in weights.values()):,} parameters on {device}")

    results = given.out / "runs.jsonl"
    done = {_key(json.loads(line)) for line in results.read_text().split("\n")[:-1]} if results.exists() else set()
    stack = given.stack_tokens
    path_training = Training(learning_rate=1e-3)
    benches: dict[str, Bench] = {}
    with results.open("a") as stream:

        def keep(lines: Iterator[dict[str, Any]]) -> None:
            for line in lines:
                stream.write(json.dumps(line) + "\n")
                done.add(_key(line))
            stream.flush()
            os.fsync(stream.fileno())

        def evaluated(of: Any, bench: Bench) -> tuple[Any, Any]:
            nats = text_losses(model, of, bench.texts, window=WINDOW, batch_tokens=given.score_tokens)
            answers = bench.answers and text_losses(
                model, of, bench.answers, window=WINDOW, batch_tokens=given.score_tokens
            )
            return nats, answers

        def score(name: str) -> None:
            try:
                bench = opened[name].result()
                bench.score(model, weights, checkpoint.separator, path_training, given.score_tokens)
                cell = Cell(name, "before", 0.0, 0, 0.0)
                if cell.key not in done:
                    keep(bench.lines([cell], [], *evaluated(stacked(weights, 1), bench), 0.0, given.name))
            except Exception as error:  # one scenario that fails must not take the others along
                clock.say(f"{name} failed: {error!r}")
                return
            benches[name] = bench
            clock.say(f"{name}: {bench.pool.num_samples} documents scored along paths")

        waiting = sorted(names, key=lambda name: not name.startswith("test/"))  # the test's first
        while waiting and waiting[0].startswith("test/"):
            score(waiting.pop(0))
        training = Training(learning_rate=given.rate)
        size = max(1, stack // (BATCH * WINDOW))
        begun_cells = set(done)
        ahead: list[tuple[list[Cell], list[NDArray[np.int64]], list[Future[Any]]]] = []

        def fetch() -> None:
            for bench in benches.values():
                bench.gather()
            number, cells = missing(benches, given.seeds, begun_cells, size)
            while waiting and (number > 0 or not cells):  # then it is the turn of the development scenarios
                score(waiting.pop(0))
                number, cells = missing(benches, given.seeds, begun_cells, size)
            if not cells:
                return
            begun_cells.update(cell.key for cell in cells)
            bench = benches[cells[0].scenario]
            rows = [bench.chosen(cell) for cell in cells]
            futures = [
                pool.submit(
                    Packing(
                        carry,
                        work,
                        start,
                        cell.scenario,
                        r,
                        cell.replay,
                        bench.steps * BATCH,
                        checkpoint.separator,
                        cell.seed,
                    ).windows
                )
                for cell, r in zip(cells, rows, strict=True)
            ]
            ahead.append((cells, rows, futures))

        def work_off(cells: list[Cell], rows: list[Any], windows: Any, bench: Bench) -> float:
            """Train, score and write a stack; one that does not fit is cut in two."""
            begun = time.monotonic()
            try:
                of = stacked(weights, len(cells))
                train(model, of, windows, training, batch=BATCH, moments=moments)
                if device == "cuda":
                    torch.cuda.synchronize()
                trained = time.monotonic() - begun
                found = evaluated(of, bench)
            except torch.OutOfMemoryError:
                if len(cells) == 1:
                    raise
                clock.say(f"{len(cells)} runs do not fit side by side")
                half = len(cells) // 2
                return work_off(cells[:half], rows[:half], windows[:half], bench) + work_off(
                    cells[half:], rows[half:], windows[half:], bench
                )
            keep(bench.lines(cells, rows, *found, trained, given.name))
            return trained

        for _ in range(2):  # no more ahead than keeps the GPU busy: new arms may be worthier
            fetch()
        count = 0
        longest = 0.0
        while clock.left > 1.2 * longest + 2:
            if not ahead:
                if all(process.poll() is not None for process in choosers.values()) and len(choosers) == len(names):
                    fetch()  # what came at the very end
                    if not ahead:
                        break
                time.sleep(0.5)
                fetch()
                continue
            cells, rows, futures = ahead.pop(0)
            fetch()
            begun = time.monotonic()
            bench = benches[cells[0].scenario]
            windows = np.stack([future.result() for future in futures])
            waited = time.monotonic() - begun
            trained = work_off(cells, rows, windows, bench)
            count += len(cells)
            if count // 400 > (count - len(cells)) // 400:
                _save_scores(benches, given.out / "scores.npz")
            took = time.monotonic() - begun
            longest = max(longest, took)
            clock.say(
                f"{cells[0].scenario}: {len(cells)} runs in {took:.1f} s (waited {waited:.1f}, trained {trained:.1f}), "
                f"{count} in all"
            )
        for _, _, futures in ahead:
            for future in futures:
                future.cancel()
    for process in choosers.values():
        if process.poll() is None:
            process.kill()
    _save_scores(benches, given.out / "scores.npz")
    if (carry / "stable.npz").exists():
        with tarfile.open(given.out / "model.tar.gz", "w:gz") as archive:  # few files come back from some machines
            archive.add(start, "stable-1m")
    logs = [f"== {path.stem}\n{path.read_text()[-3000:]}\n" for path in sorted(work.glob("*.log"))]
    (given.out / "logs.txt").write_text("".join(logs))
    clock.say(f"{count} runs, {len(done)} lines in {results}")
    os._exit(0)  # the pool's processes hold nothing that counts


def go_on(given: argparse.Namespace) -> None:
    """Go on with the stable phase at its rate, and save weights and moments in the Trainer's form."""
    import torch
    from safetensors.torch import save_file
    from stacked import Training, decays, load, load_moments, replayed, stacked, train

    clock, model_directory = Clock(given.seconds), given.model
    torch.set_float32_matmul_precision("high")
    model, weights = load(model_directory, given.device)
    before = load_moments(model_directory / "optimizer.pt", weights)
    windows = np.load(given.windows)["windows"]
    training = Training(learning_rate=given.rate, schedule="constant")
    of = stacked(weights, 1)
    moments = (stacked(before[0], 1), stacked(before[1], 1), before[2])
    total, chunk = len(windows) // BATCH, 100
    step = replayed(model, of, moments, training, (1, BATCH, WINDOW)) if given.device == "cuda" else None
    done, loss = 0, float("nan")
    while done < total and clock.left > 0:
        part = windows[done * BATCH : (done + chunk) * BATCH]
        if step is not None:
            for i in range(len(part) // BATCH):
                loss = step(part[None, i * BATCH : (i + 1) * BATCH])
            moments = (moments[0], moments[1], moments[2] + len(part) // BATCH)
        else:
            one = ({name: value[0] for name, value in each.items()} for each in moments[:2])
            moments = train(model, of, part[None], training, batch=BATCH, moments=(*one, moments[2]))
        done += len(part) // BATCH
    clock.say(f"stable phase: {done} more steps, {moments[2]:.0f} in all, last loss {float(loss):.3f}")
    if not all(bool(torch.isfinite(value).all()) for value in of.values()):
        raise SystemExit("the stable phase gave weights that are not finite: it is not gone on from")
    order = [name for name in weights if decays(name)] + [name for name in weights if not decays(name)]
    saved = torch.load(model_directory / "optimizer.pt", map_location="cpu", weights_only=True)
    for place, name in enumerate(order):
        saved["state"][place] |= {
            "exp_avg": moments[0][name][0].cpu().clone(),
            "exp_avg_sq": moments[1][name][0].cpu().clone(),
            "step": torch.tensor(float(moments[2])),
        }
    given.out.mkdir(parents=True, exist_ok=True)
    torch.save(saved, given.out / "optimizer.pt")
    found = {name: value[0].detach().contiguous().cpu() for name, value in of.items()}
    save_file(found, given.out / "model.safetensors", metadata={"format": "pt"})


def _stable(carry: Path, work: Path, clock: Clock, given: argparse.Namespace) -> None:
    """Finish the stable phase in a process of its own; where that fails, the checkpoint given is where all starts."""
    start, more = work / "model.part", work / "stable"
    shutil.copytree(carry / "model", start, dirs_exist_ok=True)
    if (carry / "stable.npz").exists() and given.stable_seconds > 0:
        command = [
            sys.executable,
            __file__,
            "stable",
            "--model",
            start,
            "--windows",
            carry / "stable.npz",
            "--out",
            more,
        ]
        command += ["--device", given.device, "--seconds", given.stable_seconds, "--rate", given.rate]
        try:
            done = subprocess.run([str(word) for word in command], timeout=given.stable_seconds + 30, check=False)
            if done.returncode == 0:
                for name in ("model.safetensors", "optimizer.pt"):
                    shutil.copy(more / name, start / name)
        except subprocess.TimeoutExpired:
            clock.say("stable phase: not done in time")
    start.rename(work / "model")


def _begin_choosers(
    carry: Path, work: Path, names: list[str], given: argparse.Namespace
) -> dict[str, subprocess.Popen[bytes]]:
    """A process for each scenario, as many at once as there are cores for."""
    waiting, running = list(names), dict[str, subprocess.Popen[bytes]]()

    def begin(name: str) -> None:
        log = (work / f"{slug(name)}.log").open("w")
        arms = list(PRODUCT_ARMS) if name.startswith("test/") else [arm for arm in PRODUCT_ARMS if arm != "energy"]
        command = [sys.executable, __file__, "choose", "--carry", carry, "--work", work, "--name", name]
        command += ["--device", given.device, "--arms", *arms]
        running[name] = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def feed() -> None:
        while waiting:
            if sum(process.poll() is None for process in running.values()) < given.choosers:
                begin(waiting.pop(0))
            else:
                time.sleep(0.2)

    threading.Thread(target=feed, daemon=True).start()
    return running


def _save_scores(benches: dict[str, Bench], path: Path) -> None:
    """Every arm's scores, choices and the pool's losses, to look at later: one file."""
    found: dict[str, Any] = {}
    for name, bench in benches.items():
        found[f"{name}|ids"] = np.array(bench.pool.index["id"].to_pylist())
        found[f"{name}|fine"] = bench.fine
        for key, value in vars(bench.paths).items():
            found[f"{name}|loss:{key}"] = value.astype(np.float32)
        for key, value in bench.scores.items():
            found[f"{name}|score:{key}"] = value.astype(np.float32)
        for key, rows in bench.rows.items():
            found[f"{name}|rows:{key}"] = rows.astype(np.int32)
    np.savez_compressed(path, **found)


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["scenario"], line["arm"], line["replay"], line["seed"], line["fraction"]


def _wanted(name: str, given: list[str] | None) -> bool:
    return given is None or any(name == one or name.startswith(one) for one in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--checkpoint", type=Path, required=True, help="directory with weights, tokenizer, optimizer.pt")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--stable", type=Path, help="stable.jsonl, to go on with the stable phase")
    one.add_argument("--stable-steps", type=int, default=6000)
    one.add_argument("--pool", type=int, help="passages to choose from")
    one.set_defaults(command=prepare)
    two = commands.add_parser("choose")
    two.add_argument("--carry", type=Path, required=True)
    two.add_argument("--work", type=Path, required=True)
    two.add_argument("--name", required=True)
    two.add_argument("--device", default="cuda")
    two.add_argument("--arms", nargs="+", default=list(PRODUCT_ARMS))
    two.set_defaults(command=lambda given: choose(given.carry, given.work, given.name, given.device, given.arms))
    four = commands.add_parser("stable")
    four.add_argument("--model", type=Path, required=True)
    four.add_argument("--windows", type=Path, required=True)
    four.add_argument("--out", type=Path, required=True)
    four.add_argument("--device", default="cuda")
    four.add_argument("--seconds", type=float, default=60.0)
    four.add_argument("--rate", type=float, default=3e-3)
    four.set_defaults(command=go_on)
    three = commands.add_parser("run")
    three.add_argument("--carry", type=Path, required=True)
    three.add_argument("--out", type=Path, required=True)
    three.add_argument("--work", type=Path, default=Path("/tmp/grid"), help="what is not kept")
    three.add_argument("--seconds", type=float, default=540.0)
    three.add_argument("--stable-seconds", type=float, default=60.0)
    three.add_argument("--scenarios", nargs="+", help="names, or beginnings of names")
    three.add_argument("--seeds", type=int, default=5)
    three.add_argument("--rate", type=float, default=3e-3)
    three.add_argument("--name", default="1m")
    three.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    three.add_argument("--processes", type=int, default=8, help="that pack windows")
    three.add_argument("--choosers", type=int, default=9, help="scenarios that the package chooses in at once")
    three.add_argument("--threads", type=int, default=1)
    three.add_argument("--stack-tokens", type=int, default=STACK_TOKENS)
    three.add_argument("--score-tokens", type=int, default=SCORE_TOKENS)
    three.add_argument("--limit", type=int, help="held-out texts of a domain, for a rehearsal")
    three.set_defaults(command=run)
    given = parser.parse_args()
    given.command(given)


if __name__ == "__main__":
    main()
