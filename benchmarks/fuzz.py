"""Damage pools, runs, configurations, checkpoints, scorers and comparisons at random, and count how commands end: there
is to be no traceback, no signal, no hang, and no other result without a word.

    python benchmarks/fuzz.py --minutes 60 --seed 0

Each case runs in a process of its own, forked with everything imported. One case in eight is as a user has it; the
others choose by the cheapest objective and leave figures out, that say nothing of damage and cost most. What is kept
of a case that ends badly lies below --out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from markupsafe import Markup

from data.corpus_samples import write_lines
from data.test_token_files import write as write_tokens
from direct_anneal.cli import main as command_line
from direct_anneal.distill import write_scorer
from distill.conftest import random_scorer
from report.conftest import write_comparison
from selection.pools import chosen, write_world
from selection.tiny import SKETCH_SIZE, documents, write_checkpoint

PATIENCE = 60.0  # seconds of the processor after which a case hangs; or of waiting, on a machine that has time for it
STARVED = 1200.0  # seconds of waiting after which it hangs on any machine
AS_IS = 1 / 8  # share of the cases that leave out nothing
ENDS = {0: "done", 1: "TRACEBACK", 2: "refused", 130: "interrupted"}
ODD = (b"\0", b"\xff" * 8, b"[" * 5000, b'"' * 3, b"1e999", b"-1", b"\xed\xa0\x80", b"\r\n" * 40, b"NaN", b"../../x")
OPTIONS = (
    b"num_samples: 5\nobjective: energy\nsketch_size: 32\nfloors: {prose: 0.1}\nseed: 3\ntext_field: [text, content]\n"
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped, cut, a part twice, a part gone, something odd put in, two parts changed for each other."""
    if not content:
        return rng.choice(ODD)
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 8, 64))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:start]
    if kind == 2:
        return content[:stop] + content[start:]
    if kind == 3:
        return content[:start] + content[stop:]
    if kind == 4:
        return content[:start] + rng.choice(ODD) + content[start:]
    return content[stop:] + content[start:stop] + content[:start]


def ended(words: list[str], log: Path, *, drawn: bool = True) -> str:
    """Return how a command ends, in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log, drawn))
    process.start()
    started = time.monotonic()
    while process.is_alive():
        process.join(5.0)
        waited = time.monotonic() - started
        if waited > PATIENCE and process.is_alive() and _processor_seconds(process.pid) > min(PATIENCE, waited / 2):
            waited = STARVED
        if waited >= STARVED and process.is_alive():
            process.kill()
            process.join()
            return "HANG"
    code = process.exitcode
    assert code is not None
    return ENDS.get(code, f"SIGNAL {-code}" if code < 0 else f"CODE {code}")


def _processor_seconds(pid: int | None) -> float:
    """Seconds that a process has computed; so many as it likes where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return PATIENCE
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run(words: list[str], log: Path, drawn: bool) -> None:
    torch.set_num_threads(1)
    with log.open("w", encoding="utf-8", errors="replace") as stream, redirect_stderr(stream), redirect_stdout(stream):
        os.dup2(stream.fileno(), 2)
        if drawn:
            code = command_line(words)
        else:
            with (
                mock.patch("direct_anneal.report.figures.draw", _undrawn),
                mock.patch("direct_anneal.compare.figures.draw", _undrawn),
            ):
                code = command_line(words)
    os._exit(code)


def _undrawn(*_: object, **__: object) -> Markup:
    return Markup("")


def spent() -> float:
    """Minutes that this process and those that it has waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) / 60


def write_other_formats(world: Path) -> None:
    """Write arrays, tables of text and other codecs; and pools of tokens, in a directory each."""
    records = documents(12, seed=4, prefix="o")
    lines = [
        ",".join(records[0]).encode(),
        *(f'{one["id"]},{one["domain"]},"{one["text"]}"'.encode() for one in records),
    ]
    array = [b"[", *(json.dumps(one).encode() + b"," for one in records[1:]), json.dumps(records[0]).encode(), b"]"]
    for ending in ("", ".gz", ".zst"):
        write_lines(world / "pool" / f"more.csv{ending}", lines)
        write_lines(world / "pool" / f"more.json{ending}", array)
    table = pa.Table.from_pylist(records)
    for codec in ("none", "gzip", "brotli", "lz4", "zstd"):
        pq.write_table(table, world / "pool" / f"{codec}.parquet", compression=codec)
    for format in ("npy", "bin", "ds"):
        (world / format).mkdir()
        write_tokens(world / format, format, [[*range(3, 9 + number % 20), 2] for number in range(20)])


class Fuzzer:
    """Cases of each kind, over a small pool in every format and a run over it."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self.rng = directory, rng
        self.log = directory / "log.txt"
        self.model = write_checkpoint(directory / "model")
        (directory / "world").mkdir()
        self.world = write_world(directory / "world")
        write_other_formats(self.world)
        self.scorer = directory / "scorer"
        write_scorer(random_scorer(), self.scorer)
        quick = {"learning_rates": (1e-2,), "max_passes": 1.0, "num_folds": 2, "min_order": 1e-9}
        self.runs = [
            chosen(self.model, self.world, self.world / "run", relax_budget=True).out,
            chosen(self.model, self.world, self.world / "path", objective="path", objective_options=quick).out,
        ]
        self._imported()
        self.wanted = {run: self._exported(run) for run in self.runs}
        assert None not in self.wanted.values()

    def _imported(self) -> None:
        """Whatever commands import when they are needed is imported here, once."""
        write_comparison(self.directory)
        scored = ["--out", str(self.directory / "scored"), "--fraction", "0.5", "--workers", "1"]
        for words in (
            ["report", str(self.directory)],
            ["verify", str(self.runs[0])],
            ["score", "--scorer", str(self.scorer), "--pool", str(self.world / "validation.jsonl"), *scored],
        ):
            assert command_line([*words, "--quiet"]) == 0, words

    def _ended(self, words: list[str]) -> str:
        return ended(words, self.log, drawn=self.rng.random() < AS_IS)

    def _select(self, pool: Path, *more: str) -> list[str]:
        words = ["select", "--model", self.model, "--pool", pool, "--validation", self.world / "validation.jsonl"]
        words += ["--out", self.directory / "case" / "out", "--sketch-size", SKETCH_SIZE, "--quiet"]
        if self.rng.random() > AS_IS:
            words += ["--objective", "energy"]
        return [*map(str, words), *more]

    def pool(self) -> tuple[str, str]:
        """A file of a pool, of any format."""
        formats = ["pool"] * 5 + ["npy", "bin", "ds"]
        pool = Path(shutil.copytree(self.world / self.rng.choice(formats), self.directory / "case" / "pool"))
        path = self._spoilt(pool)
        words = self._select(pool, "--fraction", "0.3", "--relax-budget")
        if not (pool / "part-0.jsonl").exists():
            words += ["--validation", str(pool), "--token-dtype", "uint16", "--eos-id", "2"]
        return self._ended(words), f"pool {path.relative_to(pool)}"

    def settings(self) -> tuple[str, str]:
        """A file of options."""
        path = self.directory / "case" / "settings.yaml"
        path.write_bytes(damaged(OPTIONS, self.rng))
        return self._ended(self._select(self.world / "pool", "--config", str(path))), "settings"

    def directory_of_a_run(self) -> tuple[str, str]:
        """A file of a run: what is exported of it is the same, or refused."""
        whole = self.rng.choice(self.runs)
        run = Path(shutil.copytree(whole, self.directory / "case" / "run"))
        told = f"run {self._spoilt(run).relative_to(run)}"
        other = self.rng.randrange(4)
        if other == 0:
            words = ["solve", str(run), "--out", str(self.directory / "case" / "solved"), "--quiet"]
            return self._ended([*words, "--num-samples", "5"]), told
        if other == 1:
            return self._ended(["report", str(run), "--quiet"]), told
        if other == 2:
            return self._ended(["verify", str(run), "--quiet"]), told
        found = self._exported(run)
        if found is None:
            return self.end, told
        return ("done" if found == self.wanted[whole] else "SILENT CHANGE"), told

    def _spoilt(self, directory: Path) -> Path:
        path = self.rng.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        return path

    def checkpoint(self) -> tuple[str, str]:
        """A file of a checkpoint."""
        model = Path(shutil.copytree(self.model, self.directory / "case" / "model"))
        path = self._spoilt(model)
        words = self._select(self.world / "validation.jsonl", "--num-samples", "5")
        words[words.index("--model") + 1] = str(model)
        return self._ended(words), f"checkpoint {path.name}"

    def other_scorer(self) -> tuple[str, str]:
        """A file of a scorer."""
        scorer = Path(shutil.copytree(self.scorer, self.directory / "case" / "scorer"))
        path = self._spoilt(scorer)
        words = ["score", "--scorer", scorer, "--pool", self.world / "validation.jsonl", "--workers", "1", "--quiet"]
        words += ["--fraction", "0.5", "--out", self.directory / "case" / "out"]
        return self._ended([str(word) for word in words]), f"scorer {path.name}"

    def comparison(self) -> tuple[str, str]:
        """A file of a comparison's directory, that is reported."""
        out = self.directory / "case" / "compared"
        out.mkdir()
        write_comparison(out)
        path = self._spoilt(out)
        return self._ended(["report", str(out), "--quiet"]), f"comparison {path.name}"

    def _exported(self, run: Path) -> bytes | None:
        out = self.directory / "exported"
        shutil.rmtree(out, ignore_errors=True)
        self.end = self._ended(["export", str(run), "--to", "megatron", "--eos-id", "2", "--out", str(out), "--quiet"])
        if self.end != "done":
            return None
        return b"".join(path.read_bytes() for path in sorted(out.glob("*.bin")))


def main() -> None:
    """Run for so many minutes of the processor, and print the counts; those so far where it is ended before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    rng, counts, started = random.Random(options.seed), Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        try:
            cases(Path(name), rng, counts, options)
        finally:
            for (kind, end), count in sorted(counts.items()):
                print(f"{kind:>10} {end:>14} {count:>6,}")
            waited = (time.monotonic() - started) / 60
            print(f"{sum(counts.values()):,} cases, {spent():.1f} minutes of the processor, {waited:.1f} by the clock")


def cases(directory: Path, rng: random.Random, counts: Counter[tuple[str, str]], options: argparse.Namespace) -> None:
    """Count cases by their kind and their end, and keep those that end badly."""
    fuzzer, case = Fuzzer(directory, rng), directory / "case"
    kinds: list[Callable[[], tuple[str, str]]] = [fuzzer.pool, fuzzer.settings, fuzzer.directory_of_a_run]
    kinds += [fuzzer.checkpoint, fuzzer.other_scorer, fuzzer.comparison]
    while spent() < options.minutes:
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        end, told = rng.choice(kinds)()
        counts[told.split()[0], end] += 1
        if end.isupper() or " " in end:
            kept = options.out / f"{options.seed}-{sum(counts.values())}"
            shutil.copytree(case, kept, symlinks=True)
            shutil.copy(fuzzer.log, kept / "log.txt")
            print(f"{end}: {told}: kept in {kept}", flush=True)


if __name__ == "__main__":
    main()
