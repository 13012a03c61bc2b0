"""Losses and slopes of shards of documents at points of a path: computed here, or by the workers of a cluster.

n documents of a shard, k directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import nn

from direct_anneal.features.storage import Directory, place_at
from direct_anneal.path.documents import Tokens
from direct_anneal.path.order import Order
from direct_anneal.path.scoring import OutOfMemoryError, losses_of
from direct_anneal.path.stiff import Slopes
from direct_anneal.path.walk import put_tensors, put_weights

_START = ("", "")  # which stands at no place in particular

Found = dict[str, NDArray[np.float64]]
"""Columns of one shard, (n,) each."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the path, and what is wanted there.

    Attributes:
        place: a directory or URL with the files of weights and directions.
        weights: name of the file of the weights there; None at θ_s.
        directions: name of a file of directions: slopes of the losses along them are wanted, and not losses.
    """

    place: str
    weights: str | None = None
    directions: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some documents, and where their losses are wanted.

    Attributes:
        point: of the path.
        contents: tokens of each.
        num_prompt: leading tokens of each that are not predicted.
        batch_tokens: padded tokens of a batch.
        order: their order is wanted, and not their losses; then there are no contents.
    """

    point: Point
    contents: list[Tokens]
    num_prompt: NDArray[np.int64]
    batch_tokens: int
    order: Order | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.contents)) if self.order is None else self.order.num_tokens


Elsewhere = Callable[[Iterable[Shard]], Iterator[Found | None]]
"""Results of a `Scorer` for each shard, in order, by workers of a cluster."""


class Scorer:
    """Computation of shards with one model, which moves to each one's point.

    Args:
        model: moved in place.
        return_to_start: puts the model back to θ_s.
        is_at_start: the model stands there already.
        max_length: T, tokens of a window.
        dtype: of forward passes, "float32" or "bfloat16"; slopes are taken in float32.
        advance: told the tokens of each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        return_to_start: Callable[[], None],
        max_length: int,
        dtype: str,
        is_at_start: bool = False,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._model, self._return_to_start = model, return_to_start
        self._max_length, self._dtype, self._advance = max_length, dtype, advance
        self._at: Point | None = None
        self._weights: tuple[str, str] | None = _START if is_at_start else None
        self._slopes: Slopes | None = None

    def __call__(self, shard: Shard) -> Found | None:
        """Compute columns of `Sums`, or `order`, or `slope_0` and on; None where a batch does not fit into memory."""
        self._move(shard.point)
        device = next(self._model.parameters()).device.type
        options = {"max_length": self._max_length, "batch_tokens": shard.batch_tokens}
        try:
            if self._slopes is not None:
                slopes = self._slopes(shard.contents, shard.num_prompt, advance=self._advance, **options)
                return {slope_name(place): column for place, column in enumerate(slopes.T)}
            with torch.autocast(device, torch.bfloat16, enabled=self._dtype == "bfloat16"):
                if shard.order is not None:
                    return {"order": self._chances(shard.order, **options)}
                losses = losses_of(self._model, shard.contents, shard.num_prompt, advance=self._advance, **options)
            return asdict(losses)
        except OutOfMemoryError:
            return None

    def _chances(self, order: Order, **options: int) -> NDArray[np.float64]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            self._advance(amount)

        def nats(texts: Sequence[Tokens]) -> NDArray[np.float64]:
            no_prompt = np.zeros(len(texts), dtype=np.int64)
            return losses_of(self._model, texts, no_prompt, advance=advance, **options).nats

        try:
            chances = order.chances(nats)
        except OutOfMemoryError:
            self._advance(-done)
            raise
        self._advance(order.num_tokens - done)  # what the openings have decided is not read
        return chances

    def _move(self, point: Point) -> None:
        if point == self._at:
            return
        weights = _START if point.weights is None else (point.place, point.weights)
        if weights != self._weights:
            if point.weights is None:
                self._return_to_start()
            elif isinstance(place := place_at(point.place), Directory):
                put_weights(place.path / point.weights, self._model)
            else:
                put_tensors(load(place.read(point.weights)).__getitem__, self._model)
            self._weights = weights
        self._slopes = None
        if point.directions is not None:
            directions = load(place_at(point.place).read(point.directions))["directions"]
            self._slopes = Slopes(self._model, directions.to(next(self._model.parameters()).device))
        self._at = point


def slope_name(place: int) -> str:
    """Return the column of slopes along a direction."""
    return f"slope_{place}"
