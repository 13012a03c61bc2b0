"""Cost of a sketch on a GPU, against training, the frozen floor, and what the device can multiply.

    python benchmarks/gpu.py [--batch-tokens N] [--repeats N] [--toy | --calls]

GPT-2-124M- and Llama-1.1B-shaped random models in bfloat16 at 1,024 and 2,048 tokens; R = 2048, all parameters covered.
The variants take turns, a ratio is the median over turns. "Of peak" is the multiplications that a sketch cannot do
without (4 FLOPs a token for every entry of a matrix that tokens pass through, and the attention's) over its time, as a
share of the fastest bfloat16 product of two 8,192 × 8,192 matrices seen in the same run. `--toy` rehearses the same
on a CPU with models of a few thousand parameters. With the defaults it takes less than five minutes of an H100.

`--calls` needs no GPU: the same models on a device without numbers, where each operator call is counted, with the bytes
of the tensors that it reads and writes. Attention is many calls there and one on a GPU, in all variants alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, masking_utils
from transformers.utils import logging

from direct_anneal.gradients import FACTOR_SIZE, GradientSketcher
from gradients import FLOOR, SKETCH, SKETCHING, TRAINING, Step, ratio, step

VARIANTS = (TRAINING, FLOOR, SKETCHING)
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "unsqueeze"}
VIEWS |= {"split_with_sizes", "squeeze", "detach", "alias", "as_strided", "unbind"}
LENGTHS, TOY_LENGTHS = (1024, 2048), (16, 32)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def gpt2(toy: bool) -> nn.Module:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64} if toy else {}
    return GPT2LMHeadModel(GPT2Config(n_positions=max(LENGTHS), **size, **SPECIAL))


def llama(toy: bool) -> nn.Module:
    width, inner, layers, vocabulary = (32, 48, 2, 64) if toy else (2048, 5632, 22, 32000)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=2 if toy else 32,
            num_key_value_heads=1 if toy else 4,
            vocab_size=vocabulary,
            max_position_embeddings=max(LENGTHS),
            **SPECIAL,
        )
    )


MODELS = {"GPT-2 124M": gpt2, "Llama 1.1B": llama}


def synchronised_seconds(run: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds by variant; two turns warm up, the first of which also checks the model."""
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for turn in range(repeats + 2):
        for variant, run in steps.items():
            taken = synchronised_seconds(run, device)
            if turn >= 2:
                seconds[variant].append(taken)
    return seconds


def peak_bytes(run: Step, device: torch.device) -> int:
    """Peak of one step beyond what is held before it; 0 on a CPU, where gradients.py measures that."""
    if device.type != "cuda":
        return 0
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def matrix_peak(device: torch.device, size: int) -> float:
    """FLOPs a second of the fastest of ten products."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(synchronised_seconds(lambda: a @ b, device) for _ in range(10))


def needed_flops(model: nn.Module, ids: Tensor) -> float:
    """FLOPs of one sketch, forward and backward through activations; a token meets half of the others in attention."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    looked_up.discard(id(model.get_output_embeddings().weight))
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    config = model.config
    attention = config.num_hidden_layers * config.hidden_size * ids.shape[1]
    # Attention: two products forward and four backward, 2 FLOPs each, half of them masked.
    return ids.numel() * (4.0 * matrices + 6.0 * attention)


class Calls(TorchDispatchMode):
    """Counts operator calls that a device would see, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.moved = 0, 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[1] not in VIEWS:
            self.calls += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


def count_calls(name: str, build: Callable[[bool], nn.Module], batch_tokens: int) -> None:
    """Count the calls of one batch at the shorter length, for each variant."""
    # There transformers waits for the device in every forward pass, the bare one's too; and where ids may be padding.
    masking_utils.find_packed_sequence_indices = lambda _: None
    length = LENGTHS[0]
    learned = GradientSketcher(build(True).bfloat16().eval(), 16)
    learned.sketch(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    plain = {type(module): found for module, found in learned._capture._plain.items()}
    with torch.device("meta"):
        model = build(False).bfloat16().eval()
    model.tie_weights()
    model.config.pad_token_id = None
    ids = torch.zeros(batch_tokens // length, length, dtype=torch.int64, device="meta")
    shown = []
    for variant in VARIANTS:
        run = step(variant, model, ids, FACTOR_SIZE)
        if variant == SKETCHING:  # what the first batch finds out by looking at numbers
            sketcher = GradientSketcher(model, SKETCH)
            sketcher._checked = True
            for module in model.modules():
                if type(module) in plain:
                    sketcher._capture._plain[module] = plain[type(module)]
                    sketcher._capture._has_offset[module] = False
            run = partial(sketcher.sketch, ids)
        run()
        with Calls() as calls:
            run()
        model.zero_grad(set_to_none=True)
        shown.append(f"{variant} {calls.calls:,} calls, {calls.moved / 1e9:.1f} GB")
    print(f"{name}, {ids.shape[0]} × {length}: {'; '.join(shown)}", flush=True)


def report(name: str, build: Callable[[bool], nn.Module], length: int, arguments: argparse.Namespace) -> None:
    device = torch.device("cpu" if arguments.toy else "cuda")
    torch.manual_seed(0)
    model = build(arguments.toy).to(device, torch.bfloat16).eval()
    batch_size = max(2, arguments.batch_tokens // length)
    ids = torch.randint(model.config.vocab_size, (batch_size, length), device=device)
    steps = {variant: step(variant, model, ids, FACTOR_SIZE) for variant in VARIANTS}
    seconds = in_turns(steps, arguments.repeats, device)
    peaks = {variant: peak_bytes(run, device) for variant, run in steps.items()}
    share = needed_flops(model, ids) / statistics.median(seconds[SKETCHING]) / arguments.peak
    memory = peaks[SKETCHING] / peaks[TRAINING] if peaks[TRAINING] else float("nan")
    figures = (ratio(seconds, SKETCHING, TRAINING), ratio(seconds, FLOOR, TRAINING), ratio(seconds, SKETCHING, FLOOR))
    shown = " ".join(f"{figure:>15.3f}" for figure in figures)
    print(f"{name:<12} {batch_size:>4} × {length:<5} {shown} {share:>9.1%} {memory:>9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--toy", action="store_true", help="tiny models on the CPU: a rehearsal, not a measurement")
    parser.add_argument("--calls", action="store_true", help="operator calls and bytes, counted without a GPU")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.calls:
        for name, build in MODELS.items():
            count_calls(name, build, arguments.batch_tokens)
        return
    if not arguments.toy and not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing measured (--toy rehearses on the CPU)")
        return
    device = torch.device("cpu" if arguments.toy else "cuda")
    arguments.peak = matrix_peak(device, 256 if arguments.toy else 8192)
    print("rehearsal on a CPU" if arguments.toy else torch.cuda.get_device_name(device), end="")
    print(f": {arguments.peak / 1e12:.3g} TFLOP/s in a bfloat16 product")
    headings = ("sketch/training", "floor/training", "sketch/floor")
    print(f"{'model':<12} {'batch':<12} {' '.join(f'{h:>15}' for h in headings)} {'of peak':>9} {'memory':>9}")
    for name, build in MODELS.items():
        for length in TOY_LENGTHS if arguments.toy else LENGTHS:
            report(name, build, length, arguments)


if __name__ == "__main__":
    main()
