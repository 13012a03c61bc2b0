"""Linear maps from gradients to sketches, z = S g, applied piece by piece without forming S or g.

B samples of a batch, T tokens, R sketch size, p factor size, D parameters; a parameter has shape (m, n) or (n,).
Every number of S follows from the seed and the parameters' names, shapes and sequence: not from device or batch.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional

from direct_anneal.gradients.experts import Routing
from direct_anneal.gradients.fold import Fold, add_products, as_factor, random_signs, summed_by_row
from direct_anneal.io.digests import short_digest

Shape = tuple[int, ...]

# A side this many times as long as the other gets this many times p places.
_LONG_SIDE = 8
# Of the dense projection: what is kept between batches; what is drawn at once, to be used while a core's cache holds
# it; and what of the batch's gradients is formed at once.
_CACHE_BYTES = 1 << 30
_BLOCK_BYTES = 4 << 20
_GRADIENT_BYTES = 64 << 20


class Projection(ABC):
    """S, and the sketches of the batch at hand.

    `begin` a batch, add each parameter's gradients in either of two forms, and `finish`. Both forms are linear and
    may be called several times for one parameter (tied weights, layers used twice): contributions add.

    Args:
        shapes: every covered parameter's shape, by name.
        sketch_size: R.
        seed: of all random numbers.
        device: where sketches are accumulated, in float32.

    Attributes:
        batch_factor: how many times larger than usual a batch should be, for what is done once a batch to pay.
        takes_experts: it has `outer_of_experts`.
    """

    batch_factor = 1
    takes_experts = False

    def __init__(self, shapes: Mapping[str, Shape], sketch_size: int, seed: int, device: torch.device) -> None:
        self.shapes = {name: _as_matrix(shape) for name, shape in shapes.items()}
        self.sketch_size = sketch_size
        self.seed = seed
        self.device = device

    @abstractmethod
    def begin(self, batch_size: int) -> None:
        """Start a batch with all gradients at zero."""

    @abstractmethod
    def finish(self) -> Tensor:
        """Return the batch's sketches, shape (B, R), float32."""

    @abstractmethod
    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        """Project one factor of an outer product until the other is known.

        Args:
            name: the parameter.
            side: 0 where the factor runs over the parameter's rows, 1 over its columns.
            factor: (B, T, m) or (B, T, n); or integers (B, T) that stand for one-hot rows.
        """

    @abstractmethod
    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        """Add S vec(Σ_t rows_t columns_tᵀ) for each sample; both factors as `keep` returned them."""

    @abstractmethod
    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        """Add S vec(G) for gradients in full, shape (B, *shape), or (1, *shape) for the one `sample`."""

    def _generator(self, key: str) -> np.random.Generator:
        # numpy's generator gives the same numbers on every platform; torch's depend on vector width and device.
        digest = short_digest(f"{self.seed}\0{key}")
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))


class TwoSided(Projection):
    """S = C · diag(P_rows ⊗ P_columns): both sides of each gradient are folded before tokens are summed.

    Gradients of a layer are sums of outer products, and P_rows (Σ_t δ_t x_tᵀ) P_columnsᵀ needs folded factors alone:
    no weight gradient is formed. P is a `Fold` into p places, or the identity where a side has no more entries;
    vectors (norms, biases) stay whole. C, a CountSketch, adds all of these numbers with random signs into R places,
    each of which gets equally many. So E‖S g‖² = ‖g‖², and inner products are unbiased.

    A side eight times as long as the other or more gets 8 p places. It is a vocabulary's, and the inputs and outputs
    on the other side have much in common in all samples: only the long side tells their gradients apart.

    Cost per sample and layer: T (m + n) additions and 2 T p², beside 4 T m n for the layer itself. Memory: m + n floats
    for each matrix, and p² for each sample of a batch.

    Source: two-sided factors as in LoGra (arXiv:2405.13954); CountSketch, Charikar et al. 2002; together, ours.
    """

    takes_experts = True

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        sketch_size: int,
        seed: int,
        device: torch.device,
        factor_size: int,
    ) -> None:
        super().__init__(shapes, sketch_size, seed, device)
        self._sides: dict[tuple[str, int], Fold | None] = {}
        self._entries: dict[str, int] = {}
        end = 0
        for name, (m, n) in self.shapes.items():
            entries = 1
            for side, (size, other) in enumerate(((m, n), (n, m))):
                places = factor_size * (_LONG_SIDE if size >= _LONG_SIDE * other else 1)
                shrinks = m > 1 and size > places
                generator = self._generator(f"{name}\0{side}")
                self._sides[name, side] = Fold(size, places, generator, device) if shrinks else None
                entries *= places if shrinks else size
            self._entries[name] = entries
            end += entries
        self._end = end
        folds = -(-end // sketch_size)
        generator = self._generator("fold")
        order = generator.permutation(folds * sketch_size)
        self._order = torch.from_numpy(order).to(device)
        self._signs = random_signs(generator, len(order), device)
        self._orders: dict[tuple[str, ...], Tensor] = {}
        self._parts: dict[str, Tensor] = {}  # (B, ·) each, in bfloat16 where factors are
        self._batch_size = 0

    def begin(self, batch_size: int) -> None:
        self._parts, self._batch_size = {}, batch_size

    def finish(self) -> Tensor:
        parts = {name: self._parts[name] if name in self._parts else self._zeros(name) for name in self.shapes}
        return self._by_number(parts) if self.device.type == "cpu" else self._by_sample(parts)

    def _by_number(self, parts: dict[str, Tensor]) -> Tensor:
        """Fold all samples together, (B, R): with a number of theirs side by side, few reads are at random."""
        spare = torch.zeros(len(self._order) - self._end, self._batch_size, device=self.device)
        numbers = torch.cat([*(part.T for part in parts.values()), spare])
        places, signs = self._bags
        return functional.embedding_bag(places, numbers, per_sample_weights=signs, mode="sum").T.contiguous()

    def _by_sample(self, parts: dict[str, Tensor]) -> Tensor:
        """Fold each sample's numbers, (B, R), in few calls."""
        # Joined by precision first: joining both at once takes a call for each part.
        halves = [name for name, part in parts.items() if part.dtype != torch.float32]
        wholes = [name for name, part in parts.items() if part.dtype == torch.float32]
        joined = [torch.cat([parts[name] for name in group], dim=1).float() for group in (halves, wholes) if group]
        spare = torch.zeros(self._batch_size, len(self._order) - self._end, device=self.device)
        signed = torch.cat([*joined, spare], dim=1)[:, self._places_of((*halves, *wholes))] * self._signs
        return signed.view(len(signed), -1, self.sketch_size).sum(1)

    @functools.cached_property
    def _bags(self) -> tuple[Tensor, Tensor]:
        """Return the places of what is added into each of R, and their signs, (R, ·) each."""
        places, signs = (each.view(-1, self.sketch_size).T.contiguous() for each in (self._order, self._signs))
        return places, signs

    def _places_of(self, names: tuple[str, ...]) -> Tensor:
        """Return the order of all numbers before they are folded, where parts lie side by side by `names`."""
        if names == tuple(self.shapes):
            return self._order
        if names not in self._orders:
            places = torch.split(torch.arange(self._end), list(self._entries.values()))
            parts = dict(zip(self.shapes, places, strict=True))
            lying = torch.cat([*(parts[name] for name in names), torch.arange(self._end, len(self._order))])
            self._orders[names] = lying.argsort().to(self.device)[self._order]
        return self._orders[names]

    def part(self, name: str) -> Tensor:
        """Return one parameter's share of the batch before it is folded, (B, ≤p²): P_rows G P_columnsᵀ."""
        return self._parts.setdefault(name, self._zeros(name))

    def squared_norms(self) -> Tensor:
        """Return Σ ‖part‖² over all parameters, (B,)."""
        return torch.stack([self.part(name).float().square().sum(1) for name in self.shapes]).sum(0)

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        fold = self._sides[name, side]
        if not factor.is_floating_point():
            return factor
        return as_factor(factor) if fold is None else fold(factor)

    def outer_of_experts(self, name: str, rows: Tensor, columns: Tensor, routing: Routing) -> None:
        """Add S vec(Σ rows columnsᵀ) over each sample's pairs of a token and an expert.

        Args:
            name: a parameter whose rows are those of all experts.
            rows: (S, m / E), of the pair's expert alone, in the order of experts; not projected.
            columns: (S, ·) in the same order, as `keep` returned them.
        """
        fold, rows = self._sides[name, 0], as_factor(rows)
        if rows.device.type != "cpu":
            factors = routing.apart(rows) if fold is None else fold.of_experts(rows, routing)
            found = routing.by_sample(factors).transpose(1, 2) @ routing.by_sample(columns)
        elif fold is not None:
            found = fold.summed_over_experts(rows, columns, routing)
        else:
            found = rows.new_zeros(routing.num_samples, routing.num_experts, rows.shape[1], columns.shape[1])
            for expert, first, end in routing.runs:
                add_products(found[:, expert], rows[first:end], columns[first:end], routing.counts[expert])
        self._add(name, found)

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        fold = self._sides[name, 0]
        if rows.is_floating_point():
            found = rows.transpose(1, 2) @ columns
        elif fold is None:
            found = summed_by_row(rows, columns, self.shapes[name][0])
        else:
            found = fold.summed(rows, columns)
        self._add(name, found)

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        reduced = gradients.reshape(len(gradients), *self.shapes[name]).float()
        rows, columns = self._sides[name, 0], self._sides[name, 1]
        if rows is not None:
            reduced = rows(reduced.transpose(1, 2)).transpose(1, 2)
        if columns is not None:
            reduced = columns(reduced)
        if sample is None:
            self._add(name, reduced)
        else:
            self._parts[name] = self.part(name).float()
            self._parts[name][sample].add_(reduced.flatten())

    def _add(self, name: str, reduced: Tensor) -> None:
        found = reduced.flatten(1)
        self._parts[name] = self._parts[name].float() + found if name in self._parts else found

    def _zeros(self, name: str) -> Tensor:
        return torch.zeros(self._batch_size, self._entries[name], device=self.device)


class DenseGaussian(Projection):
    """The paper's S: one dense Gaussian over all parameters, entries N(0, 1/R). For small models, and as the oracle.

    Drawn block by block, each block once for the whole batch; blocks are kept between batches where all of S fits
    into 1 GiB, and drawn anew otherwise. Entries are 2¹⁶ quantiles of the normal distribution, equally likely: several
    times cheaper than drawing from it, and alike in moments (the fourth is 2.999, the sixth 14.97).

    Cost: 2 R D per sample, and R D random numbers per batch (or once). Memory: 4 MiB for a block of S and at most
    1 GiB kept; 64 MiB for the batch's gradients, or one row of a parameter where that is more.

    Source: arXiv:2605.31175, Algorithm 1.
    """

    def __init__(self, shapes: Mapping[str, Shape], sketch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(shapes, sketch_size, seed, device)
        self._block_entries = max(1, _BLOCK_BYTES // (4 * sketch_size))
        num_parameters = sum(math.prod(shape) for shape in self.shapes.values())
        self._keeps_all = 4 * sketch_size * num_parameters <= _CACHE_BYTES
        self.batch_factor = 1 if self._keeps_all else 8
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._values = torch.zeros(0, sketch_size)

    def begin(self, batch_size: int) -> None:
        self._values = torch.zeros(batch_size, self.sketch_size, dtype=torch.float32, device=self.device)

    def finish(self) -> Tensor:
        return self._values

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:  # noqa: ARG002
        return factor.float() if factor.is_floating_point() else factor

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        m, n = self.shapes[name]
        height = max(1, _GRADIENT_BYTES // (4 * len(columns) * n))
        for first in range(0, m, height):
            last = min(first + height, m)
            if rows.is_floating_point():
                gradients = rows[:, :, first:last].transpose(1, 2) @ columns
            else:
                gradients = _summed_by_token(rows - first, columns, last - first)
            self._add(name, first * n, gradients.flatten(1), self._values)

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        values = self._values if sample is None else self._values[sample : sample + 1]
        self._add(name, 0, gradients.reshape(len(gradients), -1).float(), values)

    def _add(self, name: str, first: int, gradients: Tensor, values: Tensor) -> None:
        """Add S's part for the entries of a parameter from `first` on, as many as the gradients (B, ·) have."""
        last, size = first + gradients.shape[1], self._block_entries
        for block in range(first // size, -(-last // size)):
            start, stop = max(first, block * size), min(last, (block + 1) * size)
            part = self._block(name, block)[start - block * size : stop - block * size]
            values.addmm_(gradients[:, start - first : stop - first], part)

    def _block(self, name: str, block: int) -> Tensor:
        """Return S transposed for the `block`-th `_block_entries` entries of a parameter, (entries, R)."""
        if (name, block) in self._kept:
            return self._kept[name, block]
        left = math.prod(self.shapes[name]) - block * self._block_entries
        count = min(self._block_entries, left) * self.sketch_size
        numbers = self._generator(f"{name}\0{block}").bit_generator.random_raw(-(-count // 4))
        places = torch.from_numpy(numbers.view(np.uint16)[:count].astype(np.int32))
        drawn = _normal_quantiles().index_select(0, places).mul_(1 / math.sqrt(self.sketch_size))
        if not self._keeps_all:
            self._kept.clear()  # but for this one, in which a parameter's next rows may begin
        self._kept[name, block] = drawn.view(-1, self.sketch_size).to(self.device)
        return self._kept[name, block]


class GivenRows(DenseGaussian):
    """S as it is given: exact inner products of gradients with R vectors, up to float32's rounding.

    Args:
        shapes: every covered parameter's shape, by name.
        rows: S, shape (R, D), parameters in the order of `shapes`, each flat.

    Cost: 2 R D per sample, beside its gradient in full. Memory: R D floats, and 64 MiB for the batch's gradients.
    """

    def __init__(self, shapes: Mapping[str, Shape], rows: Tensor) -> None:
        super().__init__(shapes, len(rows), 0, rows.device)
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(rows.float().T, sizes)
        self._rows = {name: part.contiguous() for name, part in zip(self.shapes, parts, strict=True)}

    def _block(self, name: str, block: int) -> Tensor:
        first = block * self._block_entries
        return self._rows[name][first : first + self._block_entries]


def _summed_by_token(tokens: Tensor, values: Tensor, count: int) -> Tensor:
    """Return Σ_t e_token valuesᵀ for each sample, (B, count, n), of the tokens in 0..count−1; others are left out."""
    summed = values.new_zeros(len(tokens) * count, values.shape[-1])
    inside = (tokens >= 0) & (tokens < count)
    places = tokens + count * torch.arange(len(tokens), device=tokens.device)[:, None]
    return summed.index_add_(0, places[inside], values[inside]).view(len(tokens), count, -1)


@functools.cache
def _normal_quantiles() -> Tensor:
    """Return midpoints of 2¹⁶ equally likely slices of N(0, 1), rescaled to variance 1; float32."""
    quantiles = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    return torch.from_numpy(quantiles / np.sqrt(np.square(quantiles).mean())).float()


def _as_matrix(shape: Shape) -> tuple[int, int]:
    """Return the rows and columns under which a parameter is projected; leading dimensions are rows."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
