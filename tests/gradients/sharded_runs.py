"""Work of each process over which a test spreads a model; importable, as processes of their own need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from direct_anneal.gradients import GradientSketcher
from gradients.tiny_models import FAMILIES, V

NUM_PROCESSES = 2
SKETCH_SIZE = 64


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four sequences of different lengths, and their mask."""
    ids = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(12) < torch.tensor([12, 7, 9, 3])[:, None]
    return ids, mask


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's layers."""
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return found[0]


class Odd(nn.Module):
    """A model with a parameter that has no fast path."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.tensor([1.5]))

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        output = self.model(input_ids=input_ids, **options)
        output.logits = output.logits * self.scale
        return output


def sketched_in_parts(rank: int, directory: Path) -> None:
    """For a process of its own: everything that the tests look at, saved as `directory/<rank>.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=NUM_PROCESSES)
    results: dict[str, Any] = {}
    for family in ("llama", "llama-tied-biased", "gpt2"):
        model = FAMILIES[family]()
        for layer in blocks(model):
            fully_shard(layer)
        fully_shard(model)
        before = {name: parameter.full_tensor().clone() for name, parameter in model.named_parameters()}
        held = sum(parameter.to_local().numel() for parameter in model.parameters())
        sketcher = GradientSketcher(model, SKETCH_SIZE, seed=3)
        results[family] = {
            "own": sketcher.sketch(*batch(rank)),  # checks the model first, on other samples than those of rank 1
            "same": sketcher.sketch(*batch(7)),
            "share": held / sum(parameter.numel() for parameter in model.parameters()),
            "coverage": sketcher.describe(),
            "slow": sketcher.slow_parameters,
            "as it came": all(
                p.requires_grad and p.grad is None and torch.equal(p.full_tensor(), before[name])
                for name, p in model.named_parameters()
            ),
        }
    odd = fully_shard(Odd(FAMILIES["llama"]()))
    try:
        GradientSketcher(odd, SKETCH_SIZE).sketch(*batch(0))
    except ValueError as error:
        results["refused"] = str(error)
    some = GradientSketcher(odd, SKETCH_SIZE, parameters=["model.*"])
    results["some"] = some.sketch(*batch(0)).values
    torch.save(results, directory / f"{rank}.pt")
    dist.destroy_process_group()
