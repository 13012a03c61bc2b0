"""Layers that are no `nn.Linear`: experts whose weights lie in one tensor, routers, attention's sinks.

B samples, S pairs of a token and an expert, k experts of a token, E experts in all, m × n one expert's matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Routing:
    """The expert of every pair, pairs in the order of tokens; layers compute them in the order of experts.

    Attributes:
        experts: (S,), of each pair.
        order: (S,), the pair at each place of the order of experts; equal experts in the order of tokens.
        num_experts: E.
        num_samples: B, each of S / B pairs.
    """

    experts: Tensor
    order: Tensor
    num_experts: int
    num_samples: int

    @classmethod
    def of(cls, experts: Tensor, num_experts: int, num_samples: int) -> Routing:
        flat = experts.reshape(-1)
        return cls(flat, torch.argsort(flat, stable=True), num_experts, num_samples)

    @cached_property
    def back(self) -> Tensor:
        """Return the place of each pair, (S,)."""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(len(self.order), device=self.order.device)
        )

    @cached_property
    def ends(self) -> Tensor:
        """Return one past each expert's last place, (E,) int32."""
        bounds = torch.arange(self.num_experts, device=self.experts.device)
        return torch.searchsorted(self.experts[self.order], bounds, right=True).to(torch.int32)

    @cached_property
    def counts(self) -> list[list[int]]:
        """Count the pairs of each expert (E) and sample (B), which follow each other. Waits for the device."""
        samples = torch.arange(len(self.experts), device=self.experts.device).div(
            len(self.experts) // self.num_samples, rounding_mode="floor"
        )
        counts = torch.bincount(
            self.experts * self.num_samples + samples, minlength=self.num_experts * self.num_samples
        )
        found: list[list[int]] = counts.view(self.num_experts, self.num_samples).tolist()
        return found

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Return each expert that has any pairs, and the first and last + 1 of their places. Waits for the device."""
        ends = [0, *accumulate(map(sum, self.counts))]
        return [(e, first, end) for e, (first, end) in enumerate(pairwise(ends)) if first < end]

    def by_sample(self, rows: Tensor) -> Tensor:
        """Return what is in the order of experts in that of tokens, (S, n) → (B, S / B, n)."""
        return rows[self.back].view(self.num_samples, -1, rows.shape[-1])

    def apart(self, rows: Tensor) -> Tensor:
        """Return rows in the order of experts at their expert's place, zeros at the others': (S, m) → (S, E m)."""
        found = rows.new_zeros(len(rows), self.num_experts, rows.shape[1])
        experts = self.experts[self.order][:, None, None].expand(-1, 1, rows.shape[1])
        return found.scatter_(1, experts, rows[:, None]).flatten(1)

    def product(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Multiply each row by its expert's matrix: (S, m) in the order of experts, (E, m, n) → (S, n)."""
        if rows.device.type == "cuda" and rows.dtype == torch.bfloat16 and hasattr(functional, "grouped_mm"):
            grouped: Tensor = functional.grouped_mm(rows, matrices, offs=self.ends)
            return grouped
        found: Tensor = _Product.apply(rows, matrices, self.runs)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """Rows by their expert's matrix, written in place; derivatives are taken in the rows alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrices: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
        ctx.save_for_backward(matrices)
        ctx.runs = runs
        return _multiplied(rows, matrices, runs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (matrices,) = ctx.saved_tensors
        return _multiplied(grads[0], matrices.transpose(1, 2), ctx.runs), None, None


def _multiplied(rows: Tensor, matrices: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
    found = rows.new_empty(len(rows), matrices.shape[2])
    for expert, first, end in runs:
        torch.mm(rows[first:end], matrices[expert], out=found[first:end])
    return found


def is_fused(module: nn.Module) -> bool:
    """Tell whether a module is one of transformers' experts in one tensor, whose forward pass can be had as `fused`."""
    flags = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate", "num_experts")
    return all(hasattr(module, flag) for flag in flags) and not getattr(module, "_is_expert_parallel", True)


def fused_roles(module: Any) -> set[str]:
    """Return the names of the parameters that `fused` watches."""
    roles = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    return roles | {f"{role}_bias" for role in roles} if module.has_bias else roles


def fused(
    module: Any,
    hidden: Tensor,
    experts: Tensor,
    shares: Tensor,
    num_samples: int,
    watch: Callable[[str, Tensor, Tensor, Routing], Tensor],
) -> Tensor:
    """Run experts in one tensor forward, as transformers' `ExpertsInterface` defines it.

    Args:
        module: the experts.
        hidden: (tokens, H).
        experts: (tokens, k), the experts of each token.
        shares: (tokens, k), their weights.
        num_samples: B.
        watch: shown each matrix's role, input and output, (S, ·) in the order of experts; returns the output.
    """
    routing, k = Routing.of(experts, module.num_experts, num_samples), experts.shape[-1]

    def linear(role: str, x: Tensor) -> Tensor:
        matrices = getattr(module, role)
        out = routing.product(x, matrices if module.is_transposed else matrices.transpose(1, 2))
        if module.has_bias:
            out = out + getattr(module, f"{role}_bias")[routing.experts[routing.order]]
        return watch(role, x, out, routing)

    opened = linear("gate_up_proj" if module.has_gate else "up_proj", hidden[routing.order // k])
    out = linear("down_proj", module._apply_gate(opened) if module.has_gate else module.act_fn(opened))
    if module.has_post_expert_norm:
        out = module.post_expert_norm(out)
    weighted = out[routing.back] * shares.reshape(-1, 1)
    return weighted.view(len(hidden), k, -1).sum(1).to(hidden.dtype)


class Intercepted(TorchFunctionMode):
    """Within, what one function makes of a parameter is shown to `watch`.

    Args:
        function: `functional.linear`, of which the input and the output are shown, or `Tensor.expand`, of which the
            output is.
        parameter: itself; in another precision or shape it counts as the same.
        watch: returns the output.
    """

    def __init__(self, function: Callable[..., Any], parameter: Tensor, watch: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function, self._same, self._watch, self.calls = function, [parameter], watch, 0

    def __torch_function__(self, func: Any, _: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found, given = func(*args, **(kwargs or {})), (*args, *(kwargs or {}).values())
        if func is self._function and self._is_parameter(given[1 if func is functional.linear else 0]):
            self.calls += 1
            return self._watch(given[0], found) if func is functional.linear else self._watch(found)
        if func in (Tensor.to, Tensor.type, Tensor.float, Tensor.reshape) and self._is_parameter(given[0]):
            self._same.append(found)
        return found

    def _is_parameter(self, candidate: object) -> bool:
        return any(candidate is one for one in self._same)


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute by this function, within."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
