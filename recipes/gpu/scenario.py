"""One scenario of the grid: its documents, the scores of every arm, and the lines of its runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scoring import embeddings, forms, walk
from stacked import Text, stacked, text_losses
from streams import stream

from direct_anneal.baselines import Candidates, take
from direct_anneal.baselines.cluster_histogram import histogram_weights
from direct_anneal.baselines.embedding import largest_cosines
from direct_anneal.baselines.plain import random
from direct_anneal.data import Fields, TokenLayout, expand, prepare
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path.damage import (
    FEWEST_HEAD_TOKENS,
    HEAD_TOKENS,
    common_shares,
    num_shuffles,
    order_chances,
    repeated_share,
    shuffles,
    word_starts,
)

WINDOW, BATCH, FRACTION, TOKENS = 256, 8, 0.1, 0.2
CHOICE_ITEMS = 500


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that have something on them."""
    kind = "zstd" if path.suffix == ".zst" else None
    with pa.input_stream(str(path), compression=kind) as stream:
        return [line for line in stream.read().decode().split("\n") if line.strip()]


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


def open_corpus(carry: Path, work: Path, name: str, role: str, part: str = "corpora") -> Any:
    """A scenario's pool or validation set; tokens lie in WORK/PART, and are used again."""
    checkpoint = Checkpoint(str(carry / "model"))
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
    scenario: str
    rows: NDArray[np.int64]
    replay: float
    count: int
    separator: int | None
    seed: int

    def windows(self) -> NDArray[np.uint16]:
        if self.scenario not in _OPENED:
            _OPENED[self.scenario] = open_corpus(self.carry, self.work, self.scenario, "pool")
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

    def __init__(self, carry: Path, work: Path, name: str, limit: int | None) -> None:

        self.name, self.carry, self.work = name, carry, work
        self.scenario = json.loads((carry / "scenarios.json").read_text())[name]
        self.choices_path = work / "choices" / f"{slug(name)}.npz"
        self.pool, self.validation = (open_corpus(carry, work, name, role) for role in ("pool", "validation"))
        self.candidates = Candidates(self.pool, self.validation, "text", None)
        self.domains = np.array(self.pool.index["domain"].to_pylist(), dtype=object)
        self.budget = max(2, round(FRACTION * int(self.pool.num_tokens.sum())))
        self.steps = max(1, round(TOKENS / FRACTION * self.budget / (BATCH * WINDOW)))
        checkpoint = Checkpoint(str(carry / "model"))
        tokenizer = checkpoint.load_tokenizer()
        records = [json.loads(line) for path in self.scenario["held_out"] for line in lines_of(carry / path)]
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
            for line in lines_of(carry / self.scenario["choices"])[: min(CHOICE_ITEMS, limit or CHOICE_ITEMS)]:
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
        pairs = zip(self.heads, ids, strict=True)
        self.mixed = [Text(tokens, 1) for head, name in pairs for tokens in shuffles(head.tokens, starts, name)]
        self.scores: dict[str, NDArray[np.float64]] = {}
        self.rows: dict[str, NDArray[np.int64]] = {}
        self.gathered = 0  # when the package's choices that are known were written
        self.seconds: dict[str, float] = {}

    def score(self, model: Any, weights: Any, separator: int | None, training: Any, batch_tokens: int) -> None:
        """Walk the paths, take losses and embeddings; the arms that need the package's own come in `gathered`."""
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
        count = num_shuffles(np.minimum(self.pool.num_tokens, HEAD_TOKENS))
        mixed = np.split(heads[len(count) :], np.cumsum(count)[:-1])
        mean = np.array([each.mean() for each in mixed])
        deviation = np.array([each.std(ddof=1) if len(each) > 1 else 0.0 for each in mixed])
        order = np.where(self.told, order_chances(heads[: len(count)], mean, deviation, count), 1.0)
        # As the objective `path` leaves it out by default.
        self.fine = (self.repeated <= 0.5) & (self.common <= 0.7) & (order >= 0.93)
        own = embeddings(model, weights, self.pool, WINDOW, batch_tokens)
        target = embeddings(model, weights, self.validation, WINDOW, batch_tokens)
        self.scores["embedding similarity"] = largest_cosines(own, target)
        self.clusters = histogram_weights(own, target)
        self.scores["path: drop, no damage"] = np.where(self.fine, self.scores["path: drop over folds"], np.nan)

    def gather(self) -> None:
        """Take over what the package's process has found since it was last asked."""
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
        if cell.arm == "whole pool":
            return np.arange(self.pool.num_samples)
        if cell.arm in self.rows:
            return self.rows[cell.arm].astype(np.int64)
        if cell.arm == "random":
            scores = random(self.candidates, cell.seed)
        elif cell.arm == "cluster histogram":
            uniform = np.clip(random(self.candidates, cell.seed), 1e-12, 1 - 1e-12)
            scores = self.clusters - np.log(-np.log(uniform))
        else:
            scores = self.scores[cell.arm]
        total = int(self.pool.num_tokens.sum())
        return np.flatnonzero(take(scores, self.candidates, num_tokens=max(2, round(cell.fraction * total))))

    def _selection_seconds(self, arm: str) -> float:
        """Seconds that an arm's choice took: its walks of all paths together, the package's own process, or nothing."""
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
