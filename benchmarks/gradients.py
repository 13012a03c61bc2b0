"""What a sketch costs: ratios to a training step's forward and backward, and to the floor with frozen weights.

    python benchmarks/gradients.py [--repeats N] [--factor-size P]

GPT-2- and Llama-shaped random models of 4 layers, width 256, vocabulary 4096; 16 samples of 128 tokens; R = 2048, every
parameter covered; one thread. The variants take turns, and each one's median counts: absolute times mean little on a
shared machine, ratios from one run do. Memory is the peak of a process of its own for each variant.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from direct_anneal import GradientSketcher
from direct_anneal.gradients import FACTOR_SIZE

BATCH, LENGTH, VOCABULARY, WIDTH, LAYERS, SKETCH = 16, 128, 4096, 256, 4, 2048
FAMILIES = ("gpt2", "llama")
VARIANTS = ("training", "frozen floor", "two-sided")


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=LENGTH)
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=688,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
        )
    )


def step(variant: str, model: nn.Module, ids: Tensor, factor_size: int) -> Callable[[], object]:
    model.eval()

    targets = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)

    def loss() -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def training() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def frozen() -> None:
        model.requires_grad_(False)
        handle = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
        loss().backward()
        handle.remove()
        model.requires_grad_(True)

    if variant == "training":
        return training
    if variant == "frozen floor":
        return frozen
    sketcher = GradientSketcher(model, SKETCH, factor_size=factor_size)
    return lambda: sketcher.sketch(ids)


def measure(family: str, repeats: int, factor_size: int) -> dict[str, float]:
    model = build(family)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))
    steps = {variant: step(variant, model, ids, factor_size) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(repeats + 1):  # the first turn warms up, and is where the sketcher checks the model
        for variant, run in steps.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[variant].append(time.perf_counter() - started)
    return {variant: statistics.median(values) for variant, values in seconds.items()}


def peak_growth(family: str, variant: str, factor_size: int) -> int:
    """Bytes that three steps need at their peak, beyond what the model and the projections hold. Linux only."""
    torch.set_num_threads(1)
    run = step(variant, build(family), torch.randint(VOCABULARY, (BATCH, LENGTH)), factor_size)
    run()  # the sketcher's first batch also checks the model against autograd
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    held = resident("VmRSS")
    for _ in range(3):
        run()
    return resident("VmHWM") - held


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--factor-size", type=int, default=FACTOR_SIZE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    context = multiprocessing.get_context("spawn")
    print("ratios        sketch/training  floor/training  sketch/floor  sketch/training, peak memory")
    for family in FAMILIES:
        seconds = measure(family, arguments.repeats, arguments.factor_size)
        peaks = {}
        for variant in ("training", "two-sided"):
            with context.Pool(1) as pool:  # a process of its own: a peak never falls again
                peaks[variant] = pool.apply(peak_growth, (family, variant, arguments.factor_size))
        trained, floor, sketched = (seconds[variant] for variant in VARIANTS)
        memory = peaks["two-sided"] / peaks["training"]
        print(
            f"{family:<13} {sketched / trained:>15.3f} {floor / trained:>15.3f} "
            f"{sketched / floor:>13.3f} {memory:>29.2f}"
        )


if __name__ == "__main__":
    main()
