"""Per-sample gradients of a layer's parameters, from what flows through it: no weight gradient is ever formed.

B samples of a batch, T tokens, m × n a weight's shape; x the layer's input, δ the loss gradient at its output.
Every batch is right-padded, and positions beyond a sample's end have δ = 0 under a causal loss: they add nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from direct_anneal.gradients.projections import Projection


class UnexpectedLayoutError(RuntimeError):
    """A layer was called with activations that its fast path cannot read."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module


@dataclass(frozen=True)
class _Layout:
    """Shape of the current batch."""

    batch_size: int
    num_positions: int


@dataclass(frozen=True)
class Layer:
    """A module with a fast path.

    Attributes:
        name: of the module.
        module: itself.
        parameters: its own parameters' roles ("weight", "bias") → canonical names, shared where weights are tied.
        kind: what goes which way, for people: "linear", "embedding" or "elementwise".
    """

    name: str
    module: nn.Module
    parameters: dict[str, str]
    kind: str


def find_layers(model: nn.Module, names: dict[int, str]) -> list[Layer]:
    """Return the modules whose own parameters have a fast path.

    Args:
        model: the whole model.
        names: id(parameter) → canonical name, for each parameter that is wanted.
    """
    layers = []
    for name, module in model.named_modules():
        own = {role: names[id(p)] for role, p in module.named_parameters(recurse=False) if id(p) in names}
        kind = _kind(module)
        if own and kind is not None and set(own) <= {"weight", "bias"}:
            layers.append(Layer(name, module, own, kind))
    return layers


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear | Conv1D):
        return "linear"
    if isinstance(module, nn.Embedding):
        # One that looks up otherwise (by attention mask, say) may call anything its first argument.
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return "embedding" if plain else None
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.dim() == 1 and type(module).__name__.endswith("Norm"):
        return "elementwise" if len(inspect.signature(module.forward).parameters) == 1 else None
    return None


@dataclass
class Capture:
    """Hooks on layers that hand each backward pass to a projection.

    Args:
        layers: as `find_layers` gives them.
    """

    layers: list[Layer]
    _layout: _Layout = field(init=False)
    _without_offset: set[nn.Module] = field(init=False, default_factory=set)  # norms that are zero where weights are

    @contextmanager
    def into(self, projection: Projection, batch_size: int, num_positions: int) -> Iterator[None]:
        """Add every layer's gradients of a forward and backward pass to the projection; the hooks go at the end."""
        self._layout = _Layout(batch_size, num_positions)
        hooks = {"linear": self._linear, "embedding": self._embedding, "elementwise": self._elementwise}
        handles = [
            layer.module.register_forward_hook(hooks[layer.kind](layer, projection), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _by_sample(self, layer: Layer, activations: Tensor) -> Tensor:
        """Return activations as (B, positions, features), whether or not batch and positions came flattened."""
        b, t = self._layout.batch_size, self._layout.num_positions
        if activations.dim() >= 3 and activations.shape[0] == b:
            return activations.reshape(b, -1, activations.shape[-1])
        if activations.dim() == 2 and activations.shape[0] == b * t:
            return activations.reshape(b, t, -1)
        raise UnexpectedLayoutError(layer.name)

    @staticmethod
    def _require_tensor(layer: Layer, output: object) -> None:
        """Refuse other output than a tensor; subclasses may allow more, as a router's scores beside its choice."""
        if not isinstance(output, Tensor):
            raise UnexpectedLayoutError(layer.name)

    def _linear(self, layer: Layer, projection: Projection) -> _ForwardHook:
        transposed = isinstance(layer.module, Conv1D)  # its weight is (in, out)
        sizes = tuple(layer.module.get_parameter("weight").shape)
        weight, bias = layer.parameters.get("weight"), layer.parameters.get("bias")

        def forward(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            self._require_tensor(layer, output)
            if not output.numel():  # called for no position, which adds nothing
                return output
            x = self._by_sample(layer, (args[0] if args else kwargs["input"]).detach())
            if (output.shape[-1], x.shape[-1]) != (sizes[::-1] if transposed else sizes):  # grouped, say
                raise UnexpectedLayoutError(layer.name)
            kept = None if weight is None else projection.keep(weight, 0 if transposed else 1, x)

            def backward(grad: Tensor) -> None:
                delta = self._by_sample(layer, grad)
                if weight is not None and kept is not None:
                    other = projection.keep(weight, 1 if transposed else 0, delta)
                    projection.outer(weight, *((kept, other) if transposed else (other, kept)))
                if bias is not None:
                    projection.full(bias, delta.float().sum(1))

            return _watched(output, backward)

        return forward

    def _embedding(self, layer: Layer, projection: Projection) -> _ForwardHook:
        module = layer.module
        assert isinstance(module, nn.Embedding)
        weight = layer.parameters["weight"]
        scale = float(getattr(module, "embed_scale", 1.0))  # Gemma 3's embedding multiplies inside

        def forward(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            self._require_tensor(layer, output)
            if not output.numel():  # called for no position, which adds nothing
                return output
            b = self._layout.batch_size
            ids = (args[0] if args else kwargs["input"]).reshape(-1, output.shape[-2])
            if ids.shape[0] not in (1, b):
                raise UnexpectedLayoutError(layer.name)
            # Positions may be looked up once for the whole batch; each sample needs a gradient of its own.
            ids = ids.expand(b, -1)
            expanded = output.detach().reshape(-1, *output.shape[-2:]).expand(b, -1, -1)

            def backward(grad: Tensor) -> None:
                delta = grad * scale
                if module.padding_idx is not None:  # the row that autograd never updates
                    delta = delta.masked_fill((ids == module.padding_idx)[..., None], 0.0)
                projection.outer(weight, projection.keep(weight, 0, ids), projection.keep(weight, 1, delta))

            return _watched(expanded, backward)

        return forward

    def _elementwise(self, layer: Layer, projection: Projection) -> _ForwardHook:
        module = layer.module
        weight, bias = layer.parameters.get("weight"), layer.parameters.get("bias")

        def forward(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            self._require_tensor(layer, output)
            if not output.numel():  # called for no position, which adds nothing
                return output
            x = (args[0] if args else next(iter(kwargs.values()))).detach()

            def backward(grad: Tensor) -> None:
                delta = self._by_sample(layer, grad)
                if weight is not None:
                    slope = self._by_sample(layer, self._slope_in_weight(module, x))
                    projection.full(weight, (delta.float() * slope.float()).sum(1))
                if bias is not None:
                    projection.full(bias, delta.float().sum(1))

            return _watched(output, backward)

        return forward

    @torch.no_grad()
    def _slope_in_weight(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return ∂output/∂weight of a module that is affine in its weight, entry by entry: its value at 1 less that at
        0.

        So one line serves LayerNorm, RMSNorm and the (1 + weight) of Gemma alike, with the module's own arithmetic.
        Most are zero at 0 (and bias 0), whatever their input: seen once, this is not computed again.
        """
        own = {role: p for role, p in module._parameters.items() if p is not None}

        def value(weight: float) -> Tensor:
            for role, parameter in own.items():
                constant = torch.full_like(parameter, weight if role == "weight" else 0.0)
                module._parameters[role] = nn.Parameter(constant, requires_grad=False)
            output: Tensor = module.forward(x)
            return output

        try:
            at_one = value(1.0)
            if module not in self._without_offset:
                at_zero = value(0.0)
                if at_one.any() and not at_zero.any():
                    self._without_offset.add(module)
                at_one -= at_zero
        finally:
            module._parameters.update(own)
        return at_one


_ForwardHook = Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], Tensor]


def _watched(output: Tensor, backward: Callable[[Tensor], None]) -> Tensor:
    """Return the layer's output, whose gradient will be shown to `backward`; the graph starts here where it has not
    yet.
    """
    if output.requires_grad:
        output.register_hook(backward)  # type: ignore[no-untyped-call]
        return output
    leaf = output.detach().requires_grad_()
    leaf.register_hook(backward)  # type: ignore[no-untyped-call]
    return leaf.clone()  # models may change it in place, which a leaf forbids
