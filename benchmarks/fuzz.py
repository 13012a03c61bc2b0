"""Damage pools, runs, configurations, checkpoints, scorers and comparisons at random, and count how commands end: there
is to be no traceback, no signal, no hang, and no other result without a word.

    python benchmarks/fuzz.py --minutes 60 --seed 0

Each case runs in a process of its own. What is kept of a case that ends badly lies below --out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from direct_anneal.cli import main as command_line
from direct_anneal.distill import write_scorer
from distill.conftest import random_scorer
from report.conftest import write_comparison
from selection.pools import chosen, write_world
from selection.tiny import SKETCH_SIZE, write_checkpoint

PATIENCE = 60.0  # seconds of the processor after which a case hangs; or of waiting, on a machine that has time for it
STARVED = 1200.0  # seconds of waiting after which it hangs on any machine
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


def ended(words: list[str], log: Path) -> str:
    """How a command ends, in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log))
    process.start()
    started = time.monotonic()
    while process.is_alive():
        process.join(5.0)
        waited = time.monotonic() - started
        if waited > STARVED or (waited > PATIENCE and _processor_seconds(process.pid) > min(PATIENCE, waited / 2)):
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


def _run(words: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("w", encoding="utf-8", errors="replace") as stream, redirect_stderr(stream), redirect_stdout(stream):
        os.dup2(stream.fileno(), 2)
        code = command_line(words)
    os._exit(code)


class Fuzzer:
    """Cases of each kind, over a small pool in every format and a run over it."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self.rng = directory, rng
        self.model = write_checkpoint(directory / "model")
        (directory / "world").mkdir()
        self.world = write_world(directory / "world")
        self.scorer = directory / "scorer"
        write_scorer(random_scorer(), self.scorer)
        self.run = chosen(self.model, self.world, self.world / "run", relax_budget=True).out
        self.wanted = self._exported(self.run, "done")

    def _select(self, pool: Path, *more: str) -> list[str]:
        words = ["select", "--model", self.model, "--pool", pool, "--validation", self.world / "validation.jsonl"]
        words += [
            "--out",
            self.directory / "case" / "out",
            "--sketch-size",
            SKETCH_SIZE,
            "--fraction",
            "0.3",
            "--quiet",
        ]
        return [*map(str, words), *more]

    def pool(self) -> tuple[str, str]:
        """A file of a pool, of any format."""
        pool = Path(shutil.copytree(self.world / "pool", self.directory / "case" / "pool"))
        path = self.rng.choice(sorted(path for path in pool.rglob("*") if path.is_file()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        return ended(self._select(pool), self.directory / "log.txt"), f"pool {path.relative_to(pool)}"

    def settings(self) -> tuple[str, str]:
        """A file of options."""
        path = self.directory / "case" / "settings.yaml"
        path.write_bytes(damaged(OPTIONS, self.rng))
        return ended(self._select(self.world / "pool", "--config", str(path)), self.directory / "log.txt"), "settings"

    def directory_of_a_run(self) -> tuple[str, str]:
        """A file of a run: what is exported of it is the same, or refused."""
        run = Path(shutil.copytree(self.run, self.directory / "case" / "run"))
        path = self.rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        told = f"run {path.relative_to(run)}"
        if self.rng.random() < 0.5:
            words = ["solve", str(run), "--out", str(self.directory / "case" / "solved"), "--quiet"]
            return ended([*words, "--num-samples", "5"], self.directory / "log.txt"), told
        found = self._exported(run, "done")
        if found is None:
            return self.end, told
        return ("done" if found == self.wanted else "SILENT CHANGE"), told

    def checkpoint(self) -> tuple[str, str]:
        """A file of a checkpoint."""
        model = Path(shutil.copytree(self.model, self.directory / "case" / "model"))
        path = self.rng.choice(sorted(path for path in model.rglob("*") if path.is_file()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        words = self._select(self.world / "validation.jsonl")
        words[words.index("--model") + 1] = str(model)
        return ended(words, self.directory / "log.txt"), f"checkpoint {path.relative_to(model)}"

    def other_scorer(self) -> tuple[str, str]:
        """A file of a scorer."""
        scorer = Path(shutil.copytree(self.scorer, self.directory / "case" / "scorer"))
        path = self.rng.choice(sorted(scorer.iterdir()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        words = ["score", "--scorer", scorer, "--pool", self.world / "validation.jsonl", "--workers", "1", "--quiet"]
        words += ["--fraction", "0.5", "--out", self.directory / "case" / "out"]
        return ended([str(word) for word in words], self.directory / "log.txt"), f"scorer {path.name}"

    def comparison(self) -> tuple[str, str]:
        """A file of a comparison's directory, that is reported."""
        out = self.directory / "case" / "compared"
        out.mkdir()
        write_comparison(out)
        path = self.rng.choice(sorted(out.iterdir()))
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        return ended(["report", str(out), "--quiet"], self.directory / "log.txt"), f"comparison {path.name}"

    def _exported(self, run: Path, expected: str) -> bytes | None:
        out = self.directory / "exported"
        shutil.rmtree(out, ignore_errors=True)
        words = ["export", str(run), "--to", "megatron", "--eos-id", "2", "--out", str(out), "--quiet"]
        self.end = ended(words, self.directory / "log.txt")
        if self.end != expected:
            return None
        return b"".join(path.read_bytes() for path in sorted(out.glob("*.bin")))


def main() -> None:
    """Run for so many minutes, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    rng, counts, started = random.Random(options.seed), Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        fuzzer = Fuzzer(Path(name), rng)
        kinds: list[Callable[[], tuple[str, str]]] = [fuzzer.pool, fuzzer.settings, fuzzer.directory_of_a_run]
        kinds += [fuzzer.checkpoint, fuzzer.other_scorer, fuzzer.comparison]
        while time.monotonic() - started < 60 * options.minutes:
            case = Path(name) / "case"
            shutil.rmtree(case, ignore_errors=True)
            case.mkdir()
            end, told = rng.choice(kinds)()
            counts[told.split()[0], end] += 1
            if end.isupper() or " " in end:
                kept = options.out / f"{options.seed}-{sum(counts.values())}"
                shutil.copytree(case, kept, symlinks=True)
                shutil.copy(Path(name) / "log.txt", kept / "log.txt")
                print(f"{end}: {told}: kept in {kept}", flush=True)
    for (kind, end), count in sorted(counts.items()):
        print(f"{kind:>10} {end:>14} {count:>6,}")


if __name__ == "__main__":
    main()
