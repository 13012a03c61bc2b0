"""Folds: additions with random signs that make a vector short, P v.

B samples of a batch, T tokens, m entries, p places.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from direct_anneal.gradients.experts import Routing

# On a CPU, too, a product beats additions where rows are so long that these read and write the folded rows many times,
# and places so few that it multiplies little (benchmarks/gradients.py).
_MOST_PLACES, _FEWEST_RUNS = 64, 6


class Fold:
    """P, shape (p, m): adds m entries with random signs into p places.

    Each run of p entries is laid over the places with a random shift of its own. So two entries of one run never meet,
    any others with probability 1/p: E PᵀP = I, one-hot vectors keep their norm, and the variance of inner products is
    at most that of entries N(0, 1/p). It takes one addition an entry, where the Gaussian takes p multiplications; where
    a product with P is faster still, it is made.

    Args:
        size: m.
        places: p < m.
        generator: of signs and shifts.
        device: of what is folded.

    Source: CountSketch, Charikar et al. 2002; the runs are ours.
    """

    def __init__(self, size: int, places: int, generator: np.random.Generator, device: torch.device) -> None:
        self.size, self.places = size, places
        self._signs = random_signs(generator, size, device)
        self._shifts = generator.integers(0, places, -(-size // places)).tolist()
        entries = torch.arange(size, device=device)
        runs = entries.div(places, rounding_mode="floor")
        self._places = (entries + torch.tensor(self._shifts, device=device)[runs]) % places
        self._matrices: dict[torch.dtype, Tensor] = {}

    def __call__(self, values: Tensor) -> Tensor:
        """Return P v along the last dimension, of `as_factor`'s type: (..., m) → (..., p)."""
        values = as_factor(values)
        if values.device.type != "cpu":  # one product there is faster than many additions
            return values @ self.matrix(values.dtype)
        if self.places <= _MOST_PLACES and self.size >= _FEWEST_RUNS * self.places:
            return values @ self._formed(values.dtype)
        folded = values.new_empty(*values.shape[:-1], self.places)
        for entries, places in self._laid(0, self.size):
            factors = values[..., entries], self._signs[entries]
            if entries.start < self.places:  # the first run fills every place
                torch.mul(*factors, out=folded[..., places])
            else:
                folded[..., places].addcmul_(*factors)
        return folded

    def of_experts(self, values: Tensor, routing: Routing) -> Tensor:
        """Return P v where v is zero but for the entries of one of E equal parts: (S, m / E) by expert → (S, p)."""
        parts = self.matrix(values.dtype).view(routing.num_experts, values.shape[1], -1)
        return routing.product(values, parts)

    def summed_over_experts(self, rows: Tensor, columns: Tensor, routing: Routing) -> Tensor:
        """Return Σ P v columnsᵀ over each sample's pairs, v as in `of_experts`: (S, m / E), (S, q) → (B, p, q)."""
        size = rows.shape[1]
        found = rows.new_zeros(routing.num_samples, self.places, columns.shape[1])
        for expert, first, end in routing.runs:
            signed = rows[first:end] * self._signs[expert * size : (expert + 1) * size]
            for entries, places in self._laid(expert * size, size):
                add_products(found[:, places], signed[:, entries], columns[first:end], routing.counts[expert])
        return found

    def _laid(self, offset: int, size: int) -> Iterator[tuple[slice, slice]]:
        """Return which of the entries from `offset` on are next to each other, counted from there, and their places."""
        end = offset + size
        for run in range(offset // self.places, -(-end // self.places)):
            first, shift = run * self.places, self._shifts[run]
            wrap = first + self.places - shift
            for start, stop, place in ((first, wrap, shift), (wrap, first + self.places, 0)):
                low, high = max(start, offset), min(stop, end)
                if low < high:
                    yield slice(low - offset, high - offset), slice(place + low - start, place + high - start)

    def summed(self, indices: Tensor, columns: Tensor) -> Tensor:
        """Return Σ_t P e_index columnsᵀ for each sample: indices (B, T), columns (B, T, q) → (B, p, q)."""
        if columns.device.type != "cpu":  # additions would come in any order there
            return self.matrix(columns.dtype)[indices].transpose(1, 2) @ columns
        signed = columns * self._signs[indices][..., None]
        return summed_by_row(self._places[indices], signed, self.places)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return Pᵀ, (m, p); kept."""
        if dtype not in self._matrices:
            self._matrices[dtype] = self._formed(dtype)
        return self._matrices[dtype]

    def _formed(self, dtype: torch.dtype) -> Tensor:
        matrix = self._signs.new_zeros(self.size, self.places, dtype=dtype)
        return matrix.scatter_(1, self._places[:, None], self._signs[:, None].to(dtype))


def as_factor(values: Tensor) -> Tensor:
    """Return factors as they are multiplied: float32, or bfloat16 where a device is faster with it.

    There signs are exact, sums float32 inside, and rounded once: 2⁻⁹ of a factor, far below the sketch's own error.
    float16 could overflow.
    """
    return values if values.dtype == torch.bfloat16 and values.device.type != "cpu" else values.float()


def summed_by_row(rows: Tensor, columns: Tensor, count: int) -> Tensor:
    """Return Σ_t e_row columnsᵀ for each sample: rows (B, T) in 0..count−1, columns (B, T, q) → (B, count, q)."""
    if columns.device.type != "cpu":  # additions would come in any order there
        one_hot = rows[..., None] == torch.arange(count, device=rows.device)
        return one_hot.to(columns.dtype).transpose(1, 2) @ columns
    places = rows + count * torch.arange(len(rows))[:, None]
    summed = columns.new_zeros(len(rows) * count, columns.shape[-1])
    return summed.index_add_(0, places.flatten(), columns.flatten(0, 1)).view(len(rows), count, -1)


def add_products(sums: Tensor, rows: Tensor, columns: Tensor, counts: list[int]) -> None:
    """Add Σ row columnᵀ over each sample's rows, of which there are `counts`: (B, p, q), (S, p), (S, q)."""
    parts = zip(sums.unbind(), torch.split(rows.T, counts, dim=1), torch.split(columns, counts), counts, strict=True)
    for found, left, right, count in parts:
        if count:
            found.addmm_(left, right)


def random_signs(generator: np.random.Generator, size: int, device: torch.device) -> Tensor:
    """Draw +1 and −1, equally likely, (size,), float32."""
    return torch.from_numpy((generator.integers(0, 2, size) * 2 - 1).astype(np.float32)).to(device)
