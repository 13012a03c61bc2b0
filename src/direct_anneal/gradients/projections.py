"""Linear maps from gradients to sketches, z = S g, applied piece by piece without forming S or g.

B samples of a batch, T tokens, R sketch size, p factor size, D parameters; a parameter has shape (m, n) or (n,).
Every number of S follows from the seed and the parameters' names, shapes and sequence: not from device or batch.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]

_CACHE_BYTES = 1 << 30  # of dense blocks kept between batches
_CHUNK_BYTES = 128 << 20  # of one chunk of a dense block


class Projection(ABC):
    """S, and the sketches of the batch at hand.

    `begin` a batch, add each parameter's gradients in either of two forms, and `finish`. Both forms are linear and
    may be called several times for one parameter (tied weights, layers used twice): contributions add.

    Args:
        shapes: every covered parameter's shape, by name.
        sketch_size: R.
        seed: of all random numbers.
        device: where sketches are accumulated, in float32.
    """

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
        """The batch's sketches, shape (B, R), float32."""

    @abstractmethod
    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        """What to hold of one factor of an outer product until the other is known.

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

    def _gaussian(self, key: str, rows: int, columns: int, variance: float) -> Tensor:
        values = self._generator(key).standard_normal((rows, columns), dtype=np.float32)
        return torch.from_numpy(values).mul_(math.sqrt(variance)).to(self.device)

    def _generator(self, key: str) -> np.random.Generator:
        # numpy's generator gives the same numbers on every platform; torch's depend on vector width and device.
        digest = hashlib.blake2b(f"{self.seed}\0{key}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class TwoSided(Projection):
    """S = C · diag(P_rows ⊗ P_columns): both sides of each gradient are projected before tokens are summed.

    Gradients of a layer are sums of outer products, and P_rows (Σ_t δ_t x_tᵀ) P_columnsᵀ needs projected factors
    alone: no weight gradient is formed. P has entries N(0, 1/p), or is the identity where a side has at most p
    entries; vectors (norms, biases) stay whole. C, a CountSketch, adds all of these numbers with random signs into
    R places, each of which gets equally many. So E‖S g‖² = ‖g‖², and inner products are unbiased.

    Cost per sample and layer: 2 T p (m + n) + 2 T p², beside 4 T m n for the layer itself. Memory: p (m + n) floats
    for each matrix, and p² for each sample of a batch.

    Source: two-sided factors as in LoGra (arXiv:2405.13954); CountSketch, Charikar et al. 2002; together, ours.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        sketch_size: int,
        seed: int,
        device: torch.device,
        factor_size: int,
    ) -> None:
        super().__init__(shapes, sketch_size, seed, device)
        self._sides: dict[tuple[str, int], Tensor | None] = {}
        self._slots: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (m, n) in self.shapes.items():
            entries = 1
            for side, size in enumerate((m, n)):
                shrinks = m > 1 and size > factor_size
                self._sides[name, side] = (
                    self._gaussian(f"{name}\0{side}", factor_size, size, 1 / factor_size) if shrinks else None
                )
                entries *= factor_size if shrinks else size
            self._slots[name] = (end, end + entries)
            end += entries
        folds = -(-end // sketch_size)
        generator = self._generator("fold")
        order = generator.permutation(folds * sketch_size)
        self._order = torch.from_numpy(order).to(device)
        signs = generator.integers(0, 2, len(order)) * 2 - 1
        self._signs = torch.from_numpy(signs.astype(np.float32)).to(device)
        self._reduced = torch.zeros(0, len(order))

    def begin(self, batch_size: int) -> None:
        self._reduced = torch.zeros(batch_size, len(self._order), dtype=torch.float32, device=self.device)

    def finish(self) -> Tensor:
        signed = self._reduced[:, self._order] * self._signs
        return signed.view(len(signed), -1, self.sketch_size).sum(1)

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        projection = self._sides[name, side]
        if not factor.is_floating_point():
            size = self.shapes[name][side]
            table = torch.eye(size, device=self.device) if projection is None else projection.T
            return table[factor]
        factor = factor.float()
        return factor if projection is None else factor @ projection.T

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        first, last = self._slots[name]
        self._reduced[:, first:last] += (rows.transpose(1, 2) @ columns).flatten(1)

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        reduced = gradients.reshape(len(gradients), *self.shapes[name]).float()
        rows, columns = self._sides[name, 0], self._sides[name, 1]
        if rows is not None:
            reduced = rows @ reduced
        if columns is not None:
            reduced = reduced @ columns.T
        first, last = self._slots[name]
        target = self._reduced if sample is None else self._reduced[sample : sample + 1]
        target[:, first:last] += reduced.flatten(1)


class DenseGaussian(Projection):
    """The paper's S: one dense Gaussian over all parameters, entries N(0, 1/R). For small models, and as the oracle.

    Drawn chunk by chunk, each chunk once for the whole batch; chunks are kept between batches where all of S fits
    into 1 GiB, and drawn anew otherwise. Cost: 2 R D per sample, and R D random numbers per batch (or once). Memory:
    128 MiB for a chunk, B/R times as much for the batch's gradients over it, and at most 1 GiB kept.

    Source: arXiv:2605.31175, Algorithm 1.
    """

    def __init__(self, shapes: Mapping[str, Shape], sketch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(shapes, sketch_size, seed, device)
        num_parameters = sum(math.prod(shape) for shape in self.shapes.values())
        self._cache: dict[tuple[str, int], Tensor] | None = (
            {} if 4 * sketch_size * num_parameters <= _CACHE_BYTES else None
        )
        self._values = torch.zeros(0, sketch_size)

    def begin(self, batch_size: int) -> None:
        self._values = torch.zeros(batch_size, self.sketch_size, dtype=torch.float32, device=self.device)

    def finish(self) -> Tensor:
        return self._values

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        if factor.is_floating_point():
            return factor.float()
        return torch.nn.functional.one_hot(factor, self.shapes[name][side]).float()

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        for first, last in self._row_ranges(name):
            block = (rows[:, :, first:last].transpose(1, 2) @ columns).flatten(1)
            self._add(block @ self._chunk(name, first, last))

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        gradients = gradients.reshape(len(gradients), *self.shapes[name])
        for first, last in self._row_ranges(name):
            block = gradients[:, first:last].flatten(1).float()
            self._add(block @ self._chunk(name, first, last), sample)

    def _add(self, values: Tensor, sample: int | None = None) -> None:
        if sample is None:
            self._values += values
        else:
            self._values[sample] += values[0]

    def _row_ranges(self, name: str) -> list[tuple[int, int]]:
        m, n = self.shapes[name]
        step = max(1, _CHUNK_BYTES // (4 * self.sketch_size * n))
        return [(first, min(first + step, m)) for first in range(0, m, step)]

    def _chunk(self, name: str, first: int, last: int) -> Tensor:
        if self._cache is not None and (name, first) in self._cache:
            return self._cache[name, first]
        entries = (last - first) * self.shapes[name][1]
        chunk = self._gaussian(f"{name}\0{first}", entries, self.sketch_size, 1 / self.sketch_size)
        if self._cache is not None:
            self._cache[name, first] = chunk
        return chunk


class Unprojected(Projection):
    """S = I: keeps whole gradients by name. What the fast path is checked against, on one sample."""

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device) -> None:
        super().__init__(shapes, 0, 0, device)
        self.gradients: dict[str, Tensor] = {}

    def begin(self, batch_size: int) -> None:
        self.gradients = {
            name: torch.zeros(batch_size, *shape, device=self.device) for name, shape in self.shapes.items()
        }

    def finish(self) -> Tensor:
        """(B, D), the parameters in the order of `shapes`."""
        return torch.cat([gradient.flatten(1) for gradient in self.gradients.values()], dim=1)

    def keep(self, name: str, side: int, factor: Tensor) -> Tensor:
        if factor.is_floating_point():
            return factor.float()
        return torch.nn.functional.one_hot(factor, self.shapes[name][side]).float()

    def outer(self, name: str, rows: Tensor, columns: Tensor) -> None:
        self.gradients[name] += rows.transpose(1, 2) @ columns

    def full(self, name: str, gradients: Tensor, sample: int | None = None) -> None:
        gradients = gradients.reshape(len(gradients), *self.shapes[name]).float()
        if sample is None:
            self.gradients[name] += gradients
        else:
            self.gradients[name][sample] += gradients[0]


def _as_matrix(shape: Shape) -> tuple[int, int]:
    """The rows and columns under which a parameter is projected; leading dimensions are rows."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
