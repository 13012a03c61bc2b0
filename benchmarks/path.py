"""What scoring documents costs beside a bare forward pass, and how much of it is padding.

    python benchmarks/path.py [CHECKPOINT [documents [device]]]

Documents are random tokens of all lengths from 20 up to twice the context; the model is the demo's where none is named.
The bare loop runs `model(ids)` over as many tokens in windows of the context's full length, with no padding and no
loss. Both are timed in turns, and the best of each counts, since other work on the machine only ever slows one down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from direct_anneal.model.batching import batches, padded, windows_of
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path.scoring import BATCH_TOKENS, losses_of

ROUNDS = 3


def main(name: str, count: int, device: str) -> None:
    checkpoint = Checkpoint(name)
    model, window = checkpoint.load_model(device, "float32"), checkpoint.window(None)
    batch_tokens = BATCH_TOKENS[torch.device(device).type]
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(20), np.log(2 * window), count)).astype(int)
    contents = [rng.integers(0, checkpoint.vocab_size, length) for length in lengths]
    num_prompt, total = np.zeros(count, dtype=np.int64), int(lengths.sum())

    waste = []
    for first in range(0, count, 1024):
        windows = windows_of(contents[first : first + 1024], max_length=window)
        for batch in batches(windows, batch_tokens):
            waste.append((padded(batch).ids.numel(), sum(len(w.tokens) for w in batch)))
    laid, real = np.sum(waste, axis=0)

    rows = max(1, batch_tokens // window)
    full = torch.from_numpy(rng.integers(0, checkpoint.vocab_size, (-(-total // (rows * window)), rows, window)))

    def bare() -> None:
        with torch.inference_mode():
            for ids in full:
                model(input_ids=ids.to(device), use_cache=False)

    def ours() -> None:
        for first in range(0, count, 1024):
            part = slice(first, first + 1024)
            losses_of(model, contents[part], num_prompt[part], max_length=window, batch_tokens=batch_tokens)

    bare_rate, our_rate = (0.0, 0.0)
    for _ in range(ROUNDS):
        bare_rate = max(bare_rate, full.numel() / _seconds(bare, device))
        our_rate = max(our_rate, total / _seconds(ours, device))
    print(f"{name}: {count} documents, {total:,} tokens, window {window}, {batch_tokens} tokens a batch, {device}")
    share = our_rate / bare_rate
    print(f"padding {1 - real / laid:.2%}; bare {bare_rate:,.0f} tokens/s, scored {our_rate:,.0f}: {share:.3f}")


def _seconds(work: Callable[[], None], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter  # a CPU may be shared
    began = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    name, count, device, *_ = [*sys.argv[1:], *("src/direct_anneal/demo/model", "512", "cpu")[len(sys.argv) - 1 :]]
    main(name, int(count), device)
