"""Cost of tokenising a pool to each of N jobs that read it at once: processor seconds, and files that each tokenised.

The pool is 10 MB of text in 32 files, the tokenizer the demo's. Every job also checks and indexes what others made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from score import MEGABYTE, texts_of

from direct_anneal.data import Fields, SharedCaches, expand, preparation
from direct_anneal.demo import demo_model_path
from direct_anneal.model.checkpoint import Checkpoint

FILES, BYTES = 32, 10 * MEGABYTE


def job(pool: Path, out: Path, number: int, count: int, begin: Barrier) -> None:
    """Prepare the pool as one of the jobs; writes what it took."""
    checkpoint = Checkpoint(str(demo_model_path()))
    checkpoint.load_tokenizer()
    tokenised = []
    real = preparation.tokenized_documents

    def counted(source, *given):
        tokenised.append(source)
        return real(source, *given)

    preparation.tokenized_documents = counted
    preparation._LOOK_SECONDS = 0.1
    begin.wait()
    started = time.process_time()
    corpus = preparation.prepare(
        expand([str(pool)], role="pool"),
        role="pool",
        fields=Fields(),
        load_tokenizer=checkpoint.load_tokenizer,
        tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
        vocab_size=checkpoint.vocab_size,
        max_length=1024,
        directory=out / f"job-{number}",
        shared=SharedCaches(directory=out / "shared", number=number, count=count),
    )
    result = [len(tokenised), time.process_time() - started, int(corpus.num_tokens.sum()), corpus.fingerprint]
    (out / f"{number}.json").write_text(json.dumps(result))


def main() -> None:
    """Print a line for each number of jobs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pool = Path(directory) / "pool"
        pool.mkdir()
        texts = texts_of(BYTES)
        for number in range(FILES):
            lines = (json.dumps({"text": text}) + "\n" for text in texts[number::FILES])
            (pool / f"part-{number:02d}.jsonl").write_text("".join(lines))
        forks = multiprocessing.get_context("spawn")
        for count in options.jobs:
            out = Path(directory) / str(count)
            out.mkdir()
            begin = forks.Barrier(count)
            jobs = [forks.Process(target=job, args=(pool, out, number, count, begin)) for number in range(count)]
            for process in jobs:
                process.start()
            for process in jobs:
                process.join()
            found = [json.loads((out / f"{number}.json").read_text()) for number in range(count)]
            assert len({fingerprint for *_, fingerprint in found}) == 1
            seconds = [seconds for _, seconds, *_ in found]
            print(
                f"{count} jobs, {found[0][2]:,} tokens: {sum(seconds):.1f} s of processor in all, at most "
                f"{max(seconds):.1f} each; files tokenised by each: {', '.join(str(files) for files, *_ in found)}"
            )


if __name__ == "__main__":
    main()
