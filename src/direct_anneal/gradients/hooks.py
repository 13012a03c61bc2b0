"""Per-sample gradients of a layer's parameters, from what flows through it: no weight gradient is ever formed.

B samples of a batch, T tokens, m × n a weight's shape; x the layer's input, δ the loss gradient at its output.
Every batch is right-padded, and positions beyond a sample's end have δ = 0 under a causal loss: they add nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from direct_anneal.gradients.experts import Intercepted, Routing, forward_of, fused, fused_roles, is_fused
from direct_anneal.gradients.projections import Projection, TwoSided
from direct_anneal.model.loaded import is_conv1d, is_linear


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
        kind: what goes which way, for people: "linear", "embedding", "elementwise", "experts" or "sinks".
    """

    name: str
    module: nn.Module
    parameters: dict[str, str]
    kind: str


def find_layers(model: nn.Module, names: dict[int, str], *, experts: bool = True) -> list[Layer]:
    """Return the modules whose own parameters have a fast path.

    Args:
        model: the whole model.
        names: id(parameter) → canonical name, for each parameter that is wanted.
        experts: those in one tensor, too.
    """
    layers = []
    for name, module in model.named_modules():
        own = {role: names[id(p)] for role, p in module.named_parameters(recurse=False) if id(p) in names}
        kind, roles = _kind(module)
        if own and set(own) <= roles and (experts or kind != "experts"):
            layers.append(Layer(name, module, own, kind))
    return layers


def _kind(module: nn.Module) -> tuple[str, set[str]]:
    """Return the kind of a module's fast path, and the parameters that it covers: none without one."""
    if is_fused(module):
        return "experts", fused_roles(module)
    if "sinks" in module._parameters:
        return "sinks", {"sinks"}
    covered = {"weight", "bias"}
    if is_linear(module):
        return "linear", covered
    if isinstance(module, nn.Embedding):
        # One that looks up otherwise (by attention mask, say) may call anything its first argument.
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return "embedding", covered if plain else set()
    weight = module._parameters.get("weight")
    if weight is not None and weight.dim() == 1 and type(module).__name__.endswith("Norm"):
        return "elementwise", covered if len(inspect.signature(module.forward).parameters) == 1 else set()
    # A router, say, which calls functional.linear; whether it does is seen when it runs.
    return "linear", covered if weight is not None and weight.dim() == 2 else set()


@dataclass
class Capture:
    """Hooks on layers that hand each backward pass to a projection.

    Args:
        layers: as `find_layers` gives them.
    """

    layers: list[Layer]
    _layout: _Layout = field(init=False)
    _plain: dict[nn.Module, bool] = field(init=False, default_factory=dict)
    _has_offset: dict[nn.Module, bool] = field(init=False, default_factory=dict)  # norms that are not zero at weight 0
    _constants: dict[tuple[object, ...], nn.Parameter] = field(init=False, default_factory=dict)
    _zeros: dict[torch.device, Tensor] = field(init=False, default_factory=dict)

    @contextmanager
    def into(self, projection: Projection, batch_size: int, num_positions: int) -> Iterator[None]:
        """Add every layer's gradients of a forward and backward pass to the projection; the hooks go at the end."""
        self._layout = _Layout(batch_size, num_positions)
        hooks = {"linear": self._linear, "embedding": self._embedding, "elementwise": self._elementwise}
        with ExitStack() as stack:
            for layer in self.layers:
                if layer.kind == "sinks":
                    stack.enter_context(forward_of(layer.module, self._sinks(layer, projection)))
                elif layer.kind == "experts":
                    stack.enter_context(forward_of(layer.module, self._experts(layer, projection)))
                elif layer.kind == "linear" and not is_linear(layer.module):
                    stack.enter_context(forward_of(layer.module, self._calling_linear(layer, projection)))
                else:
                    hook = hooks[layer.kind](layer, projection)
                    handle = layer.module.register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

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
        transposed = is_conv1d(layer.module)  # its weight is (in, out)
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
                    projection.full(bias, delta.sum(1, dtype=torch.float32))

            return _watched(output, backward)

        return forward

    def _calling_linear(self, layer: Layer, projection: Projection) -> Callable[..., object]:
        """Return the forward pass of a module that calls functional.linear with its weight."""
        hook = self._linear(layer, projection)

        def watch(x: Tensor, output: Tensor) -> Tensor:
            return hook(layer.module, (x,), {}, output)

        return self._intercepting(layer, functional.linear, "weight", watch)

    def _sinks(self, layer: Layer, projection: Projection) -> Callable[..., object]:
        """Return the forward pass of an attention that repeats its sinks, (heads,), for each sample and position."""
        name = layer.parameters["sinks"]
        heads = len(layer.module.get_parameter("sinks"))

        def watch(repeated: Tensor) -> Tensor:
            if repeated.shape[:2] != (self._layout.batch_size, heads):
                raise UnexpectedLayoutError(layer.name)
            return _watched(
                repeated.contiguous(), lambda grad: projection.full(name, grad.flatten(2).sum(2, dtype=torch.float32))
            )

        return self._intercepting(layer, Tensor.expand, "sinks", watch)

    @staticmethod
    def _intercepting(
        layer: Layer, function: Callable[..., Any], role: str, watch: Callable[..., Tensor]
    ) -> Callable[..., object]:
        own = layer.module.forward

        def forward(*args: object, **kwargs: object) -> object:
            with Intercepted(function, layer.module.get_parameter(role), watch) as seen:
                found: object = own(*args, **kwargs)
            if not seen.calls:
                raise UnexpectedLayoutError(layer.name)
            return found

        return forward

    def _experts(self, layer: Layer, projection: Projection) -> Callable[..., Tensor]:
        """Return the forward pass of experts in one tensor. Of such a weight, (E, m, n), the rows are E m."""
        module: Any = layer.module
        transposed = bool(module.is_transposed)
        assert isinstance(projection, TwoSided)

        def watch(role: str, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
            weight, bias = layer.parameters.get(role), layer.parameters.get(f"{role}_bias")
            if not output.numel():
                return output

            def keep(name: str, columns: Tensor) -> Tensor:
                return projection.keep(name, 1, columns[None])[0]

            kept = None if weight is None else x.detach() if transposed else keep(weight, x.detach())

            def backward(delta: Tensor) -> None:
                if weight is not None and kept is not None:
                    factors = (kept, keep(weight, delta)) if transposed else (delta, kept)
                    projection.outer_of_experts(weight, *factors, routing)
                if bias is not None:
                    experts = routing.experts.view(self._layout.batch_size, -1)
                    projection.outer(bias, experts, routing.by_sample(keep(bias, delta)))

            return _watched(output, backward)

        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            given, positions = (*args, *kwargs.values()), self._layout.batch_size * self._layout.num_positions
            if len(given) != 3 or given[0].dim() != 2 or any(len(one) != positions for one in given):
                raise UnexpectedLayoutError(layer.name)
            if given[1].device.type == "cpu" and bool((given[1] >= module.num_experts).any()):
                raise UnexpectedLayoutError(layer.name)  # a pair of no expert
            return fused(module, *given, self._layout.batch_size, watch)

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
            divided = weight is not None and self._is_plain(module, x)
            kept = output.detach() if divided else x  # what follows keeps the output, too

            def backward(grad: Tensor) -> None:
                delta = self._by_sample(layer, grad)
                if weight is not None:
                    slope = self._by_sample(layer, kept if divided else self._slope_in_weight(module, kept))
                    found = torch.addcmul(self._zero(delta), delta, slope).sum(1)
                    projection.full(weight, found / module.get_parameter("weight") if divided else found)
                if bias is not None:
                    projection.full(bias, delta.sum(1, dtype=torch.float32))

            return _watched(output, backward)

        return forward

    def _zero(self, like: Tensor) -> Tensor:
        """Return a zero of float32, which what is added to it becomes, too."""
        if like.device not in self._zeros:
            self._zeros[like.device] = torch.zeros((), device=like.device)
        return self._zeros[like.device]

    def _is_plain(self, module: nn.Module, x: Tensor) -> bool:
        """Tell whether the output is ∂output/∂weight times a weight without zeros, as seen when the module first ran.

        Then that slope is the output over the weight, and need not be computed again.
        """
        if module not in self._plain:
            at_zero, at_one = self._value(module, x, 0.0), self._value(module, x, 1.0)
            if not at_one.any():
                return False  # seen on nothing but zeros
            weight = module.get_parameter("weight")
            has_offset = bool(at_zero.any())
            bare = module._parameters.get("bias") is None and not has_offset
            smallest = torch.finfo(weight.dtype).tiny / torch.finfo(weight.dtype).eps
            self._plain[module] = bare and bool((weight.detach().abs() > smallest).all())
            self._has_offset[module] = has_offset
        return self._plain[module]

    def _slope_in_weight(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return ∂output/∂weight of a module that is affine in its weight, entry by entry: its value at 1 less that at
        0.

        So one line serves LayerNorm, RMSNorm and the (1 + weight) of Gemma alike, with the module's own arithmetic.
        Most are zero at 0 (and bias 0), whatever their input: seen once, this is not computed again.
        """
        at_one = self._value(module, x, 1.0)
        return at_one - self._value(module, x, 0.0) if self._has_offset.get(module, True) else at_one

    @torch.no_grad()
    def _value(self, module: nn.Module, x: Tensor, weight: float) -> Tensor:
        """Return the module's output under one weight for all entries, and no bias."""
        own = {role: p for role, p in module._parameters.items() if p is not None}
        try:
            for role, parameter in own.items():
                module._parameters[role] = self._constant(parameter, weight if role == "weight" else 0.0)
            output: Tensor = module.forward(x)
            return output
        finally:
            module._parameters.update(own)

    def _constant(self, like: Tensor, value: float) -> nn.Parameter:
        """Return a parameter of one value; kept."""
        key = (value, like.shape, like.dtype, like.device)
        if key not in self._constants:
            self._constants[key] = nn.Parameter(torch.full_like(like, value), requires_grad=False)
        return self._constants[key]


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
