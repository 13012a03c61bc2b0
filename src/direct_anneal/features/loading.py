"""Gradients back from a store: what of them can be used, and what cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.features.store import FeatureStore


@dataclass(frozen=True)
class SketchedGradients:
    """The gradients of one corpus, z = norm · unit, those that are finite.

    Attributes:
        units: rows of unit norm, memory-mapped blocks of shape (n_b, R), n in all.
        norms: ‖z‖, shape (n,).
        samples: their rows of the corpus's index, with loss and grad_norm; n.
        unusable: the same of those that are left out.
    """

    units: list[NDArray[np.float16]]
    norms: NDArray[np.float64]
    samples: pa.Table
    unusable: pa.Table

    @classmethod
    def load(cls, store: FeatureStore, index: pa.Table) -> SketchedGradients:
        """Map a complete store. Memory: its table, and a copy of the shards that hold unusable rows.

        Args:
            store: N rows.
            index: the corpus's, N rows in the same order. What the sidecars say of places and domains is of the time
                when they were written; files may have been renamed, and other fields named, since.
        """
        sidecars = store.samples()
        usable = sidecars["usable"].to_numpy()
        table = index
        for name in ("loss", "grad_norm"):
            table = table.append_column(name, sidecars[name])
        units = []
        for shard, block in enumerate(store.features()):
            rows = store.rows(shard)
            kept = usable[rows.start : rows.stop]
            units.append(block if kept.all() else block[kept])
        samples = table.filter(pa.array(usable))
        return cls(units, samples["grad_norm"].to_numpy(), samples, table.filter(pa.array(~usable)))

    def __len__(self) -> int:
        return len(self.norms)

    def dense(self) -> NDArray[np.float64]:
        """Z with its norms, shape (n, R), float64, in memory."""
        return np.concatenate([block.astype(np.float64) for block in self.units]) * self.norms[:, None]
