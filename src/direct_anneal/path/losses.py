"""The progress of every document along the path, and its signs of damage.

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
_END, _REPLAYED, _RESTRAINED, _SLOPE = "loss_end_", "loss_replayed_", "loss_restrained_", "slope_"
_SIGNS = ("repeated", "common", "order")


def columns_at(directory: Path | str) -> frozenset[str]:
    """Return what was saved there, as objectives name it: "signs", and "path" where one was walked; both where it is
    not whole, which loading it tells.
    """
    try:
        columns = ColumnStore.open(directory).columns
    except InputError:
        return frozenset({"path", "signs"})
    return frozenset({"signs", "path"} if any(name.startswith(_END) for name in columns) else {"signs"})


@dataclass(frozen=True, kw_only=True, eq=False)
class PathLosses:
    """Losses of N documents where the paths start and where each ends; their signs of damage alone where k = 0.

    Attributes:
        ids: of the documents, (N,).
        num_tokens: predicted tokens of each, (N,) float64.
        start: mean token nats at θ_s, (N,); NaN where a document predicts nothing or no path was walked, else as the
            model gave it.
        ends: the same at the end of each path, (N, k).
        names: of the paths, k.
        repeated, common, order: signs of damage (`path.damage`), (N,); NaN where one cannot be told.
        replayed: losses at the end of the walk on the replay of each path alone, (N, k); None where there is no replay.
        restrained: losses at the end of each restrained path, (N, k); None where none was walked.
        slopes: of losses at θ_s along the stiff directions, (N, s), nats; None where there are none.
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
    replayed: NDArray[np.float64] | None = None
    restrained: NDArray[np.float64] | None = None
    slopes: NDArray[np.float64] | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def only(self, rows: NDArray[np.bool_]) -> PathLosses:
        """Select the rows of some documents, (N,) bool."""
        return self.take(np.flatnonzero(rows))

    def take(self, rows: NDArray[np.intp]) -> PathLosses:
        """Take the rows of the documents at these positions."""
        ids = self.ids.take(pa.array(rows))
        parts = {name: getattr(self, name)[rows] for name in ("num_tokens", "start", "ends", *_SIGNS)}
        for name in ("replayed", "restrained", "slopes"):
            values = getattr(self, name)
            parts[name] = None if values is None else values[rows]
        return replace(self, ids=ids, **parts)

    @property
    def walk(self) -> dict[str, Any]:
        """The options of `PathConfig` that the losses depend on, as far as they are known."""
        known = dict(self.described.get("config", {}))
        return {"walk_replay": 0.0, **known} if known else known  # which `PathConfig.defining` leaves out

    @property
    def begins(self) -> NDArray[np.float64]:
        """Losses that the drop along each path begins at, (N, k): at θ_s, or after its replay alone."""
        return np.repeat(self.start[:, None], len(self.names), axis=1) if self.replayed is None else self.replayed

    @property
    def drops(self) -> NDArray[np.float64]:
        """Progress of each document along each path, nats a token, (N, k): ℓ_i(θ_s) − ℓ_i(θ_T), or what the target
        adds to a walk on replay alone.
        """
        drops: NDArray[np.float64] = self.begins - self.ends
        return drops

    @property
    def restrained_drops(self) -> NDArray[np.float64] | None:
        """Progress of each document along each restrained path, nats a token, (N, k)."""
        return None if self.restrained is None else self.begins - self.restrained

    @property
    def usable(self) -> NDArray[np.bool_]:
        """True if all losses of a document are finite, (N,); there are none where no path was walked."""
        return np.asarray(np.isfinite(self._all).all(axis=1))

    @property
    def _all(self) -> NDArray[np.float64]:
        """Every number that must be finite, side by side, (N, ·)."""
        start = self.start[:, None] if self.names else None
        parts = (start, self.replayed, self.ends, self.restrained, self.slopes)
        return np.hstack([part for part in parts if part is not None])

    @property
    def reasons(self) -> list[str | None]:
        """Reason for which a document has no progress: "nothing predicted", "nan" or "infinite"; None where it has."""
        nan = np.asarray(np.isnan(self._all).any(axis=1))
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
        values = {
            "predicted": self.num_tokens,
            "loss_start": self.start,
            **{name: getattr(self, name) for name in _SIGNS},
        }
        for prefix, names, columns in (
            (_END, self.names, self.ends),
            (_REPLAYED, self.names, self.replayed),
            (_RESTRAINED, self.names, self.restrained),
            (_SLOPE, None, self.slopes),
        ):
            if columns is not None:
                own = map(str, range(columns.shape[1])) if names is None else names
                values |= {prefix + name: column for name, column in zip(own, columns.T, strict=True)}
        store = ColumnStore(
            directory,
            num_samples=len(self),
            columns=tuple(values),
            fingerprint=fingerprint,
            rows_per_shard=rows_per_shard,
            replace=replace,
        )
        store.keep(_FACTS, self.described)
        for shard in store.missing():
            rows = slice(store.rows(shard).start, store.rows(shard).stop)
            ids = self.ids.slice(rows.start, rows.stop - rows.start)
            store.write(shard, ids, {name: column[rows] for name, column in values.items()})

    @classmethod
    def load(cls, directory: Path | str, fingerprint: Mapping[str, Any] | None = None) -> PathLosses:
        """Return the losses that `save` wrote.

        Args:
            fingerprint: that they must have; any where left out.

        Raises:
            InputError: there are none, they are of another fingerprint, or shards are missing or damaged.

        Cost: reads them twice, once to see that they are whole.
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
        ids, columns = store.read_with_ids()

        def together(prefix: str) -> NDArray[np.float64] | None:
            found = [columns[name] for name in store.columns if name.startswith(prefix)]
            return np.column_stack(found) if found else None

        names = tuple(name.removeprefix(_END) for name in store.columns if name.startswith(_END))
        return cls(
            ids=ids,
            num_tokens=columns["predicted"],
            start=columns["loss_start"],
            ends=np.column_stack([np.empty((len(ids), 0)), *(columns[_END + name] for name in names)]),
            names=names,
            **{name: columns[name] for name in _SIGNS},
            replayed=together(_REPLAYED),
            restrained=together(_RESTRAINED),
            slopes=together(_SLOPE),
            described=facts,
        )
