"""Cost of scoring: processor time a byte, by stages, and its growth with the number of documents.

The text is real where ../shared/data is, else words as frequent as words are. With --growth 7 a pool of up to 10^7
documents is scored (hard links of one file, so that it takes no room), and the exponent of its processor time is
fitted. Beside it fastText's classifier where that is installed, and datatrove's filter by it, from the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pyarrow import json as arrow_json

from direct_anneal.config.score import ScoreConfig
from direct_anneal.data.formats.json_lines import parsed
from direct_anneal.data.formats.streams import read_lines
from direct_anneal.distill import Scorer, write_scorer
from direct_anneal.distill.hashing import words
from direct_anneal.distill.scorer import LENGTHS, joined
from direct_anneal.distill.scoring import score

SHARED = Path(__file__).parents[2] / "shared" / "data" / "corpus"
MEGABYTE = 10**6


def processor_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least of `repeats` calls."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def texts_of(num_bytes: int) -> list[str]:
    """About so many bytes of text: of every domain alike where there is real one."""
    files = sorted(SHARED.glob("*.jsonl.zst")) if SHARED.is_dir() else []
    texts: list[str] = []
    for path in files:
        held = 0
        for _, line in read_lines(path, "zstd"):
            text = json.loads(line or b"{}").get("text", "")
            texts.append(text)
            held += len(text)
            if held > num_bytes / len(files):
                break
    if not files:
        rng = np.random.default_rng(0)
        vocabulary = np.array(["".join(chr(97 + c) for c in rng.integers(26, size=n % 9 + 2)) for n in range(30_000)])
        while sum(map(len, texts)) < num_bytes:
            texts.append(" ".join(vocabulary[np.minimum(rng.zipf(1.2, 400), 30_000) - 1].tolist()))
    print(f"text: {'../shared/data/corpus' if files else 'generated'}, {len(texts):,} documents")
    return texts


def random_scorer(bits: int) -> Scorer:
    """Weights do not change the time."""
    rng = np.random.default_rng(0)
    return Scorer(
        unit="words",
        weights=rng.integers(-(2**20), 2**20, size=2**bits, dtype=np.int32),
        scale=2.0**-20,
        lengths=np.zeros(len(LENGTHS) + 1),
        card={"tokens_per_size": 0.25, "vocab_size": 50_000},
    )


def stages(texts: list[str], directory: Path, bits: int) -> None:
    """Print megabytes of text a second and core for each stage, and for the whole."""
    encoded = [text.encode() for text in texts]
    size = sum(map(len, encoded))
    path, scorer = directory / "pool" / "a.jsonl", random_scorer(bits)
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    write_scorer(scorer, directory / "scorer")
    lines = [line for _, line in read_lines(path, None) if line is not None]

    def report(name: str, seconds: float) -> None:
        print(f"{name:28} {size / seconds / MEGABYTE:8.1f} MB/s")

    report("lines", processor_seconds(lambda: list(read_lines(path, None))))
    report("lines to records", processor_seconds(lambda: [parsed(line) for line in lines]))
    try:
        import orjson
    except ImportError:
        pass
    else:
        report("the same by orjson", processor_seconds(lambda: [orjson.loads(line) for line in lines]))
    one_thread = arrow_json.ReadOptions(use_threads=False, block_size=2**24)
    report("the same by pyarrow.json", processor_seconds(lambda: arrow_json.read_json(path, one_thread)))
    blocks = [joined(encoded[start : start + 64]) for start in range(0, len(encoded), 64)]
    report("words of texts", processor_seconds(lambda: [words(*block) for block in blocks]))
    report("scores of texts", processor_seconds(lambda: scorer.scores(texts)))
    out = directory / "out"
    options = {"scorer": str(directory / "scorer"), "pool": (str(path.parent),), "out": str(out), "workers": 1}

    def anew() -> None:  # the least of three: the first also imports
        shutil.rmtree(out, ignore_errors=True)
        score(ScoreConfig(**options))

    report("score --pool", processor_seconds(anew))
    fraction = {"fraction": 0.1, "exact": True}
    report("score --pool --fraction", processor_seconds(lambda: score(ScoreConfig(**options, **fraction)), 1))
    _fasttext(texts, directory, report)


def _fasttext(texts: list[str], directory: Path, report: Callable[[str, float], None]) -> None:
    try:
        import fasttext
    except ImportError:
        print("fasttext is not installed: not compared")
        return
    flat = [text.replace("\n", " ") for text in texts]
    path = directory / "labelled.txt"
    path.write_text("".join(f"__label__{i % 2} {text[:500]}\n" for i, text in enumerate(flat[:2000])))
    model = fasttext.train_supervised(str(path), wordNgrams=2, dim=100, epoch=1, thread=1, verbose=0)
    report("fastText predict, dim 100", processor_seconds(lambda: [model.predict(text, k=2) for text in flat], 1))
    try:
        from datatrove.pipeline.filters import FastTextClassifierFilter
        from datatrove.pipeline.readers import JsonlReader
    except ImportError:
        print("datatrove is not installed: its filter is not compared")
        return
    reader = JsonlReader(str(directory / "pool"))
    keep = FastTextClassifierFilter("the model above", keep_labels=("1", 0.5))
    keep._model = model
    report("datatrove: reader, filter", processor_seconds(lambda: list(keep.run(reader.run())), 1))


def growth(texts: list[str], directory: Path, largest: int, workers: int) -> None:
    """Print processor and wall seconds for 10^4, 10^5, ... documents, the mean of ten where few, and the exponent."""
    short = [text[:160] for text in texts]
    per_file = 10_000
    first = directory / "short.jsonl"
    lines = (json.dumps({"text": short[row % len(short)], "n": row}) + "\n" for row in range(per_file))
    first.write_text("".join(lines), encoding="utf-8")
    write_scorer(random_scorer(20), directory / "scorer")
    counts, seconds = [], []
    for power in range(4, largest + 1):
        pool = directory / f"pool-{power}"
        pool.mkdir()
        for number in range(10**power // per_file):
            os.link(first, pool / f"{number:05d}.jsonl")
        repeats = min(10, max(1, 10 ** (6 - power)))  # a single small one would decide the exponent
        before, started = _used(), time.monotonic()
        for number in range(repeats):
            out = directory / f"out-{power}-{number}"
            given = {"scorer": str(directory / "scorer"), "pool": (str(pool),), "workers": workers}
            result = score(ScoreConfig(**given, out=str(out), fraction=0.1, exact=True))
            shutil.rmtree(out)
        used, wall = (_used() - before) / repeats, (time.monotonic() - started) / repeats
        counts.append(result["documents"])
        seconds.append(used)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{result['documents']:>12,} documents, {result['size'] / MEGABYTE:9,.0f} MB: {used:8.1f} s of processor, "
            f"{wall:8.1f} s, peak {peak:,.0f} MB"
        )
    slope = np.polyfit(np.log(counts[1:]), np.log(seconds[1:]), 1)[0] if len(counts) > 2 else float("nan")
    print(f"exponent of processor time, from 10^5 on: {slope:.3f}")


def _used() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    """Print a line for each stage, or size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=20, help="of text for the stages (20)")
    parser.add_argument("--bits", type=int, default=20)
    parser.add_argument("--growth", type=int, metavar="P", help="score 10^4 to 10^P short documents instead")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    texts = texts_of(options.megabytes * MEGABYTE)
    with tempfile.TemporaryDirectory() as directory:
        if options.growth:
            growth(texts, Path(directory), options.growth, options.workers)
        else:
            stages(texts, Path(directory), options.bits)


if __name__ == "__main__":
    main()
