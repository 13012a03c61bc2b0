"""The progress of every document along the path.

N documents, k ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.errors import InputError, option
from direct_anneal.features.columns import ROWS_PER_SHARD, ColumnStore

_FACTS = "facts"
_END = "loss_end_"
_SIGNS = ("repeated", "common", "order")


@dataclass(frozen=True, kw_only=True, eq=False)
class PathLosses:
    """Losses of N documents where the paths start and where each ends.

    Attributes:
        ids: of the documents, (N,).
        num_tokens: predicted tokens of each, (N,) float64.
        start: mean token nats at θ_s, (N,); NaN where a document predicts nothing, else as the model gave it.
        ends: the same at the end of each path, (N, k).
        names: of the paths, k.
        repeated, common, order: signs of damage (`path.damage`), (N,); NaN where one cannot be told.
        described: rates, depth, left-out gains and fingerprints, for the manifest.
    """

    ids: pa.Array
    num_tokens: NDArray[np.float64]
    start: NDArray[np.float64]
    ends: NDArray[np.float64]
    names: tuple[str, ...]
    repeated: NDArray[np.float64]
    common: NDArray[np.float64]
    order: NDArray[np.float64]
    described: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def only(self, rows: NDArray[np.bool_]) -> PathLosses:
        """Rows of some documents, (N,) bool."""
        return self.take(np.flatnonzero(rows))

    def take(self, rows: NDArray[np.intp]) -> PathLosses:
        """Take the rows of the documents at these positions."""
        ids = self.ids.take(pa.array(rows))
        parts = {name: getattr(self, name)[rows] for name in ("num_tokens", "start", "ends", *_SIGNS)}
        return replace(self, ids=ids, **parts)

    @property
    def drops(self) -> NDArray[np.float64]:
        """Progress of each document along each path, ℓ_i(θ_s) − ℓ_i(θ_T), nats a token, (N, k)."""
        drops: NDArray[np.float64] = self.start[:, None] - self.ends
        return drops

    @property
    def usable(self) -> NDArray[np.bool_]:
        """True if all losses of a document are finite, (N,)."""
        usable: NDArray[np.bool_] = np.isfinite(self.start) & np.isfinite(self.ends).all(1)
        return usable

    @property
    def reasons(self) -> list[str | None]:
        """Why a document has no progress: "nothing predicted", "nan" or "infinite"; None where it has."""
        nan: NDArray[np.bool_] = np.isnan(self.start) | np.isnan(self.ends).any(1)
        return [
            None if fine else "nothing predicted" if not count else "nan" if bad else "infinite"
            for fine, count, bad in zip(self.usable.tolist(), self.num_tokens, nan.tolist(), strict=True)
        ]

    def save(
        self,
        directory: Path | str,
        fingerprint: Mapping[str, Any],
        *,
        rows_per_shard: int = ROWS_PER_SHARD,
        replace: bool = False,
    ) -> None:
        """Write the losses as columns, with what is said of them; what is there and whole stays."""
        store = ColumnStore(
            directory,
            num_samples=len(self),
            columns=("predicted", "loss_start", *_SIGNS, *(_END + name for name in self.names)),
            fingerprint=fingerprint,
            rows_per_shard=rows_per_shard,
            replace=replace,
        )
        store.keep(_FACTS, self.described)
        for shard in store.missing():
            rows = slice(store.rows(shard).start, store.rows(shard).stop)
            ends = {_END + name: self.ends[rows, place] for place, name in enumerate(self.names)}
            signs = {name: getattr(self, name)[rows] for name in _SIGNS}
            values = {"predicted": self.num_tokens[rows], "loss_start": self.start[rows], **signs, **ends}
            store.write(shard, self.ids.slice(rows.start, rows.stop - rows.start), values)

    @classmethod
    def load(cls, directory: Path | str, fingerprint: Mapping[str, Any] | None = None) -> PathLosses:
        """The losses that `save` wrote.

        Args:
            fingerprint: that they must have; any where left out.

        Raises:
            InputError: there are none, they are of another fingerprint, or shards are missing or damaged.
        """
        store = ColumnStore.open(directory)
        facts = store.kept(_FACTS)
        if (fingerprint is not None and store.fingerprint != fingerprint) or facts is None or store.missing():
            raise InputError(
                subject=str(directory),
                must="hold every document's losses along the path",
                got="but they are not all there, or of another run",
                do=f"run select with the {option('objective')} path first, it goes on where it stopped",
            )
        columns = store.read()
        names = tuple(name.removeprefix(_END) for name in store.columns if name.startswith(_END))
        return cls(
            ids=store.ids(),
            num_tokens=columns["predicted"],
            start=columns["loss_start"],
            ends=np.column_stack([columns[_END + name] for name in names]),
            names=names,
            **{name: columns[name] for name in _SIGNS},
            described=facts,
        )
