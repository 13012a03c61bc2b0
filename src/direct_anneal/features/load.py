"""Gradients back from a store: what of them can be used, and what is quarantined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.features.rows import StoredRows
from direct_anneal.features.store import FeatureStore, not_finite

# In units of the corpus's median norm. A sample beyond it would alone outweigh a hundred others in any sum, and ten
# thousand in any curvature; a norm like that comes of damage or overflow far more often than of something to learn.
OUTLIER_FACTOR = 100.0


@dataclass(frozen=True)
class SketchedGradients:
    """The gradients of one corpus, z = norm · unit, those that can be used.

    Attributes:
        units: rows of unit norm, in blocks of shape (n_b, R) that are read when asked for; n in all.
        norms: ‖z‖, shape (n,).
        samples: their rows of the corpus's index, with loss and grad_norm; n.
        quarantined: the same of those that are left out, with the reason: "nan", "infinite" or "outlier".
        ngrams: rows of their n-grams, in blocks of shape (n_b, L); None where they were not asked for.
    """

    units: Sequence[StoredRows | NDArray[np.float16]]
    norms: NDArray[np.float64]
    samples: pa.Table
    quarantined: pa.Table
    ngrams: Sequence[StoredRows | NDArray[np.float16]] | None = None

    @classmethod
    def load(cls, store: FeatureStore, index: pa.Table, ngrams: FeatureStore | None = None) -> SketchedGradients:
        """Load a complete store. Memory: its table.

        Left out is what is not finite, and what has a norm above `OUTLIER_FACTOR` times the median of all finite norms
        but zeros. A gradient of zero is kept: it moves nothing, and harms nothing.

        Args:
            store: N rows.
            index: the corpus's, N rows in the same order. What the sidecars say of places and domains is of the time
                when they were written; files may have been renamed, and other fields named, since.
            ngrams: of the same documents (`ngrams_of`).
        """
        sidecars = store.samples()
        outliers = _outlying(sidecars["grad_norm"].to_numpy(), sidecars["reason"].is_null().to_numpy())
        reasons = pc.if_else(pa.array(outliers), "outlier", sidecars["reason"])
        usable = reasons.is_null().to_numpy()
        table = index
        for name in ("loss", "grad_norm"):
            table = table.append_column(name, sidecars[name])
        samples = table.filter(pa.array(usable))
        quarantined = table.append_column("reason", reasons).filter(pa.array(~usable))
        words = None if ngrams is None else _only(ngrams, usable)
        return cls(_only(store, usable), samples["grad_norm"].to_numpy(), samples, quarantined, words)

    @classmethod
    def absent(cls, index: pa.Table, losses: NDArray[np.float64], reasons: Sequence[str | None]) -> SketchedGradients:
        """Stand for documents of which no gradients are needed: their table alone, with null norms.

        Args:
            index: the corpus's, N rows.
            losses: mean token nats of each, (N,).
            reasons: why a document cannot be used, (N,); None where it can.
        """
        table = index.append_column("loss", pa.array(losses, from_pandas=True))
        table = table.append_column("grad_norm", pa.nulls(len(index), pa.float64()))
        why = pa.array(reasons, pa.string())
        samples = table.filter(why.is_null())
        quarantined = table.append_column("reason", why).filter(why.is_valid())
        return cls([], np.full(len(samples), np.nan), samples, quarantined)

    def without(self, rows: NDArray[np.bool_], reasons: Sequence[str | None]) -> SketchedGradients:
        """Return the same with more documents left out.

        Args:
            rows: of the usable ones, which are, (n,) bool.
            reasons: why, for each of those.
        """
        keep = ~rows
        gone = self.samples.filter(pa.array(rows)).append_column("reason", pa.array(reasons, pa.string()))
        ends = np.cumsum([0, *(len(block) for block in self.units)])
        parts = [keep[first:last] for first, last in pairwise(ends)]

        def kept(
            blocks: Sequence[StoredRows | NDArray[np.float16]],
        ) -> list[StoredRows | NDArray[np.float16]]:
            return [
                block.only(part) if isinstance(block, StoredRows) else block[part]
                for block, part in zip(blocks, parts, strict=True)
            ]

        return SketchedGradients(
            kept(self.units),
            self.norms[keep],
            self.samples.filter(pa.array(keep)),
            pa.concat_tables([self.quarantined, gone]),
            None if self.ngrams is None else kept(self.ngrams),
        )

    def __len__(self) -> int:
        return len(self.norms)

    def dense(self) -> NDArray[np.float64]:
        """Return Z with its norms, shape (n, R), float64, in memory."""
        return np.concatenate(self.units).astype(np.float64) * self.norms[:, None]


def _only(store: FeatureStore, usable: NDArray[np.bool_]) -> list[StoredRows | NDArray[np.float16]]:
    """Select the rows of a store's blocks that can be used."""
    return [
        block.only(kept) if isinstance(block, StoredRows) else block[kept]
        for shard, block in enumerate(store.features())
        for kept in [usable[store.rows(shard).start : store.rows(shard).stop]]
    ]


def reasons_to_leave_out(losses: NDArray[np.float64], norms: NDArray[np.float64]) -> list[str | None]:
    """Label unusable gradients: "nan", "infinite", "outlier", or None."""
    reasons = not_finite(losses, norms)
    outliers = _outlying(norms, np.array([reason is None for reason in reasons]))
    return ["outlier" if far else reason for far, reason in zip(outliers, reasons, strict=True)]


def _outlying(norms: NDArray[np.float64], finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark finite norms beyond the factor, (N,) bool."""
    moving = finite & (norms > 0)  # among zeros everything else would stand out
    if not moving.any():
        return np.zeros(len(norms), dtype=bool)
    return finite & (norms > OUTLIER_FACTOR * np.median(norms[moving]))
