"""Cost of a sketch: ratios to a training step's forward and backward, and to the floor with frozen weights.

    python benchmarks/gradients.py [--repeats N] [--factor-size P] [--families NAME ...] [--quick]
    python benchmarks/gradients.py --beside-bergson      the same in an environment of its own that has Bergson, too

GPT-2-, Llama-, OLMoE- and Qwen3-MoE-shaped random models of 4 layers, width 256, vocabulary 4096 (16 experts, 4 for a
token); 16 samples of 128 tokens; and a Llama of 34 M parameters, 2 samples of 512 tokens. R = 2048, every parameter
covered; one thread. The variants take turns; a ratio is the median over turns of two variants' CPU times in
the same turn, so that what else the machine does cancels. Memory is the peak of a process of its own for each variant,
beyond what it holds between steps. `--quick` leaves memory and the dense Gaussian out.

Bergson (if it is installed) projects linear layers to P × P numbers each and covers those alone. Last comes the dense
Gaussian: a batch of 64 samples with S drawn once, against drawing S anew for each sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

from direct_anneal import GradientSketcher
from direct_anneal.gradients import FACTOR_SIZE

BATCH, LENGTH, VOCABULARY, WIDTH, LAYERS, SKETCH = 16, 128, 4096, 256, 4, 2048
DENSE_BATCH, DENSE_SKETCH = 64, 1024  # a smaller R spares minutes, and tells against the batch: passes weigh more
LARGE = "llama-34m"
FAMILIES = ("gpt2", "llama", "olmoe", "qwen3-moe", LARGE)
LARGE_BATCH, LARGE_LENGTH = 2, 512
TRAINING, FLOOR, SKETCHING, BERGSON = "training", "frozen floor", "two-sided", "bergson"
ROOT = Path(__file__).parent.parent

Step = Callable[[], object]


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=LENGTH, **special)
        ).eval()
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    experts = {"num_experts": 16, "num_experts_per_tok": 4}
    if family == "olmoe":
        return OlmoeForCausalLM(OlmoeConfig(**sizes, **experts, intermediate_size=WIDTH, **special)).eval()
    if family == "qwen3-moe":
        inner = {"moe_intermediate_size": WIDTH, "num_key_value_heads": 2, "head_dim": 64}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts, **inner, **special)).eval()
    if family == LARGE:
        sizes |= {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    inner_size = 1376 if family == LARGE else 688
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=inner_size, **special)).eval()


def tokens_of(family: str) -> Tensor:
    return random_tokens(LARGE_BATCH, LARGE_LENGTH) if family == LARGE else random_tokens(BATCH)


def random_tokens(batch_size: int, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (batch_size, length), generator=torch.Generator().manual_seed(1))


def step(variant: str, model: nn.Module, ids: Tensor, factor_size: int) -> Step:
    targets = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)

    def backward() -> None:
        logits = model(input_ids=ids, use_cache=False).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()

    def training() -> None:
        model.zero_grad(set_to_none=True)
        backward()

    def frozen() -> None:
        model.requires_grad_(False)
        handle = model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())
        backward()
        handle.remove()
        model.requires_grad_(True)

    if variant == TRAINING:
        return training
    if variant == FLOOR:
        return frozen
    if variant == BERGSON:
        return bergson(model, ids, factor_size, frozen)
    sketcher = GradientSketcher(model, SKETCH, factor_size=factor_size)
    return lambda: sketcher.sketch(ids)


def bergson(model: nn.Module, ids: Tensor, factor_size: int, frozen: Step) -> Step:
    """Bergson's hooks around a frozen forward and backward pass; nothing is written to disk."""
    from bergson.collector.gradient_collectors import GradientCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    collector = GradientCollector(
        model=model,
        cfg=IndexConfig(run_path=tempfile.gettempdir()),
        processor=GradientProcessor(projection_dim=factor_size, include_bias=True),
        data=Dataset.from_dict({"input_ids": ids.tolist()}),
        skip_index=True,
    )

    def run() -> None:
        with collector:
            frozen()
        collector.mod_grads.clear()

    return run


def cpu_seconds(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """The variants in turns; the first turn warms up, and is where the sketcher checks the model."""
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for turn in range(repeats + 1):
        for variant, run in steps.items():
            started = time.process_time()
            run()
            if turn:
                seconds[variant].append(time.process_time() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], variant: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[variant], seconds[base], strict=True))


def peak_growth(family: str, variant: str, factor_size: int) -> int:
    """Bytes that three steps need at their peak, beyond what is held between them. Linux only."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    model = build(family)
    run = step(variant, model, tokens_of(family), factor_size)
    run()
    model.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    held = resident("VmRSS")
    for _ in range(3):
        run()
    return resident("VmHWM") - held


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def drawn_anew(model: nn.Module, ids: Tensor) -> None:
    """One sample's dense sketch the plain way: its gradient, and a Gaussian of its own, in pieces that fit memory."""
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=ids[:1], use_cache=False).logits[:, :-1]
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:]).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    sketch = torch.zeros(DENSE_SKETCH)
    for piece in flat.split(1 << 14):
        sketch += torch.randn(DENSE_SKETCH, len(piece)) @ piece
    model.zero_grad(set_to_none=True)


def dense_gain() -> float:
    """Compute how many times cheaper a sample is in a batch of 64 under one dense Gaussian than with one of its own."""
    model = build("llama")
    ids = random_tokens(DENSE_BATCH)
    sketcher = GradientSketcher(model, DENSE_SKETCH, "gaussian")
    sketcher.sketch(ids[:2, :4])  # the check against autograd is made once in a run, whatever its length
    seconds = cpu_seconds({"together": lambda: sketcher.sketch(ids), "anew": lambda: drawn_anew(model, ids)}, 1)
    return DENSE_BATCH * ratio(seconds, "anew", "together")


def beside_bergson() -> None:
    """Run this file in an environment with Bergson; its torchvision has no build for every torch, and isn't needed."""
    environment = ROOT / ".venv-bergson"
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["--constraint", ROOT / "constraints.txt", "--constraint", ROOT / "benchmarks" / "bergson.txt"]
    subprocess.run([*pip, *constraints, "torch"], check=True)
    subprocess.run([*pip, *constraints, "--editable", ROOT], check=True)
    requirements = (ROOT / "benchmarks" / "bergson.txt").read_text().split()
    subprocess.run([*pip, "--no-deps", *(name for name in requirements if name.startswith("bergson"))], check=True)
    subprocess.run([*pip, *constraints, *(name for name in requirements if not name.startswith("bergson"))], check=True)
    rest = [argument for argument in sys.argv[1:] if argument != "--beside-bergson"]
    sys.exit(subprocess.run([python, __file__, *rest], check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--factor-size", type=int, default=FACTOR_SIZE)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--beside-bergson", action="store_true", help="in .venv-bergson, which is made if need be")
    arguments = parser.parse_args()
    if arguments.beside_bergson:
        beside_bergson()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    variants = [TRAINING, FLOOR, SKETCHING]
    if importlib.util.find_spec("bergson"):
        variants.append(BERGSON)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once: peaks are of what is in use
    context = multiprocessing.get_context("spawn")
    print(f"{'':<9} {'variant':<13} {'/ training':>10} {'/ floor':>10} {'memory / training':>18}")
    for family in arguments.families:
        model, ids = build(family), tokens_of(family)
        seconds = cpu_seconds(
            {variant: step(variant, model, ids, arguments.factor_size) for variant in variants}, arguments.repeats
        )
        peaks = dict.fromkeys(variants, float("nan"))
        for variant in variants if not arguments.quick else ():
            with context.Pool(1) as pool:  # a process of its own: a peak never falls again
                peaks[variant] = pool.apply(peak_growth, (family, variant, arguments.factor_size))
        for variant in variants:
            print(
                f"{family:<9} {variant:<13} {ratio(seconds, variant, TRAINING):>10.3f} "
                f"{ratio(seconds, variant, FLOOR):>10.3f} {peaks[variant] / peaks[TRAINING]:>18.2f}",
                flush=True,
            )
    if arguments.quick:
        return
    print(f"a dense Gaussian for 64 samples together: {dense_gain():.0f} times cheaper per sample than one for each")


if __name__ == "__main__":
    main()
