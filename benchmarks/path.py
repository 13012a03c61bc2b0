"""Cost of scoring documents beside a bare forward pass, how much of it is padding, and cost of a path in all.

    OMP_NUM_THREADS=1 python benchmarks/path.py [CHECKPOINT [documents [device]]]

Documents are pieces of the demo's text of all lengths from 20 up to twice the context; the model is the demo's where
none is named, and its shard is full by default (1,024). The bare loop runs `model(ids)` over as many random tokens in
windows of the context's full length, with no padding and no loss. Both are timed in turns, and the best of each counts,
since other work on the machine only ever slows one down. Then `descend` is run on the same documents with one or two
steps of each walk: all that it does beside these steps, over the bare passes that it needs, three over the pool; and
with the sign of order, which reads beginnings once more, and shuffled. On a CPU times are processor time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from direct_anneal.data import Corpus, Fields, expand, prepare
from direct_anneal.data.formats.streams import read_lines
from direct_anneal.demo.documents import write_demo_corpus
from direct_anneal.model.batching import batches, padded, windows_of
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig, descend
from direct_anneal.path.scoring import BATCH_TOKENS, LEAST_SHARE, losses_of
from direct_anneal.progress import Advance, Items, Work

ROUNDS = 2
VALIDATION = 16  # documents, of which one step is walked
SHARD = 1024


def main(name: str, count: int, device: str) -> None:
    checkpoint = Checkpoint(name)
    model, window = checkpoint.load_model(device, "float32"), checkpoint.window(None)
    batch_tokens = BATCH_TOKENS[torch.device(device).type]
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(20), np.log(2 * window), count)).astype(int)
    contents = _text(checkpoint, lengths)
    num_prompt, total = np.zeros(count, dtype=np.int64), int(lengths.sum())

    waste = []
    for first in range(0, count, SHARD):
        windows = windows_of(contents[first : first + SHARD], max_length=window)
        for batch in batches(windows, batch_tokens, least_share=LEAST_SHARE[torch.device(device).type]):
            waste.append((padded(batch).ids.numel(), sum(len(w.tokens) for w in batch)))
    laid, real = np.sum(waste, axis=0)

    rows = max(1, batch_tokens // window)
    full = torch.from_numpy(rng.integers(0, checkpoint.vocab_size, (-(-total // (rows * window)), rows, window)))

    def bare() -> None:
        with torch.inference_mode():
            for ids in full:
                model(input_ids=ids.to(device), use_cache=False)

    def ours() -> None:
        for first in range(0, count, SHARD):
            part = slice(first, first + SHARD)
            losses_of(model, contents[part], num_prompt[part], max_length=window, batch_tokens=batch_tokens)

    bare_rate, our_rate = (0.0, 0.0)
    for _ in range(ROUNDS):
        bare_rate = max(bare_rate, full.numel() / _seconds(bare, device))
        our_rate = max(our_rate, total / _seconds(ours, device))
    print(f"{name}: {count} documents, {total:,} tokens, window {window}, {batch_tokens} tokens a batch, {device}")
    share = our_rate / bare_rate
    print(f"padding {1 - real / laid:.2%}; bare {bare_rate:,.0f} tokens/s, scored {our_rate:,.0f}: {share:.3f}")

    with tempfile.TemporaryDirectory() as directory:
        pool = _corpus(Path(directory) / "pool", contents, checkpoint.vocab_size, window)
        fresh = [rng.integers(0, checkpoint.vocab_size, 50) for _ in range(VALIDATION)]
        validation = _corpus(Path(directory) / "validation", fresh, checkpoint.vocab_size, window)
        for reads_order in (False, True):
            took = _path_seconds(checkpoint, validation, pool, window, device, Path(directory) / str(reads_order))
            parts = {stage: seconds for stage, seconds in took.items() if not stage.startswith("Walking")}
            if not reads_order:
                parts.pop("Losses of shuffled words", None)
            print(f"a path {'with' if reads_order else 'without'} the order of words: ", end="")
            print(f"{sum(parts.values()) / (3 * total / bare_rate):.3f} of three bare passes (", end="")
            print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in parts.items()) + ")")


def _text(checkpoint: Checkpoint, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut whole text of the demo into pieces of these lengths; random tokens would show a model no order."""
    tokenizer, found = checkpoint.load_tokenizer(), list[int]()
    with tempfile.TemporaryDirectory() as directory:
        pool = write_demo_corpus(Path(directory), num_documents=500).pool
        for path in pool:
            for _, line in read_lines(path, "zstd"):
                row = json.loads(line or b"{}")
                if row.get("domain") in ("docs", "code", "comments"):
                    found += tokenizer(row["text"] + "\n", add_special_tokens=False)["input_ids"]
    return np.split(np.resize(np.array(found, dtype=np.int64), int(lengths.sum())), np.cumsum(lengths)[:-1])


def _path_seconds(
    checkpoint: Checkpoint, validation: Corpus, pool: Corpus, window: int, device: str, directory: Path
) -> dict[str, float]:
    """Seconds of each stage of a path."""
    watch = _Watch(device)
    config = PathConfig(
        num_folds=0,
        learning_rates=(1e-6,),
        max_passes=0.1,
        device=device,
        read_order=directory.name == "True",
    )
    descend(
        checkpoint,
        validation,
        pool,
        config,
        directory=directory / "losses",
        work=directory / "work",
        max_length=window,
        stages=watch,
    )
    return watch.seconds


class _Watch:
    """Times stages."""

    def __init__(self, device: str) -> None:
        self._device, self.seconds = device, dict[str, float]()

    @contextmanager
    def stage(
        self,
        name: str,
        unit: str,  # noqa: ARG002
        total: int | None = None,  # noqa: ARG002
        items: Items | None = None,  # noqa: ARG002
        work: Work | None = None,  # noqa: ARG002
    ) -> Iterator[Advance]:
        began = _now(self._device)
        yield lambda _: None
        self.seconds[name] = _now(self._device) - began


def _corpus(directory: Path, contents: list[np.ndarray], vocab_size: int, window: int) -> Corpus:
    directory.mkdir()
    lines = [json.dumps({"id": f"{row:06d}", "input_ids": tokens.tolist()}) for row, tokens in enumerate(contents)]
    (directory / "documents.jsonl").write_text("\n".join(lines) + "\n")

    def no_tokenizer() -> object:
        raise AssertionError("documents are tokens")

    return prepare(
        expand([str(directory / "documents.jsonl")], role="pool"),
        role="pool",
        fields=Fields(),
        load_tokenizer=no_tokenizer,
        tokenizer_fingerprint="none",
        vocab_size=vocab_size,
        max_length=window,
        directory=directory / "corpus",
    )


def _seconds(work: Callable[[], None], device: str) -> float:
    began = _now(device)
    work()
    return _now(device) - began


def _now(device: str) -> float:
    """Seconds: of the processor, which may be shared, or of the clock once a GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="src/direct_anneal/demo/model")
    parser.add_argument("documents", nargs="?", type=int, default=SHARD)
    parser.add_argument("device", nargs="?", default="cpu")
    given = parser.parse_args()
    main(given.checkpoint, given.documents, given.device)
