"""What the path says of every document.

N documents, k ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class PathLosses:
    """Losses of N documents where the paths start and where each ends.

    Attributes:
        ids: of the documents, (N,).
        num_tokens: predicted tokens of each, (N,) float64.
        start: mean token nats at θ_s, (N,); NaN where a document predicts nothing, else as the model gave it.
        ends: the same at the end of each path, (N, k).
        names: of the paths, k.
        described: rates, depth, left-out gains and fingerprints, for the manifest.
    """

    ids: pa.Array
    num_tokens: NDArray[np.float64]
    start: NDArray[np.float64]
    ends: NDArray[np.float64]
    names: tuple[str, ...]
    described: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def drops(self) -> NDArray[np.float64]:
        """Progress of each document along each path, ℓ_i(θ_s) − ℓ_i(θ_T), nats a token, (N, k)."""
        drops: NDArray[np.float64] = self.start[:, None] - self.ends
        return drops

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether all losses of a document are finite, (N,)."""
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
