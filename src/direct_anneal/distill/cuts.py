"""The place where a pool's scores are cut, and the documents that this chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """The end of a choice: all documents from the threshold on, and of those in the bin below it the first ones.

    Attributes:
        threshold: least score that is chosen whatever else; None where no bin fits as a whole.
        last: (score, part, row) of the last one chosen below the threshold, best score first, then in the pool's order;
            None where none is.
        documents, size: of the choice.
        domains: the cuts of domains with quotas; the rest is cut as above.
    """

    threshold: float | None
    last: tuple[float, int, int] | None
    documents: int
    size: int
    domains: Mapping[str, Cut] = field(default_factory=dict)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Cut:
        """Return the cut that `asdict` and JSON made this of.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        last = None
        if content["last"] is not None:
            score, part, row = content["last"]
            last = (float(score), int(part), int(row))
        domains = {str(name): cls.read(own) for name, own in content.get("domains", {}).items()}
        return cls(content["threshold"], last, int(content["documents"]), int(content["size"]), domains)

    def chosen(
        self,
        part: int,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        domains: pa.ChunkedArray | None = None,
    ) -> NDArray[np.bool_]:
        """Mark the chosen documents of a part, (n,).

        Args:
            domains: of the documents; may be left out where no domain has a cut of its own.
        """
        found = self._reached(part, scores, rows)
        if self.domains:
            assert domains is not None
            labels = domains.cast(pa.string())
            for name, own in self.domains.items():
                of = pc.equal(labels, name).fill_null(False).to_numpy()
                found[of] = own._reached(part, scores[of], rows[of])
        return found

    def _reached(self, part: int, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = np.zeros(len(scores), dtype=bool) if self.threshold is None else scores >= np.float32(self.threshold)
        if self.last is not None:
            score, last_part, last_row = np.float32(self.last[0]), self.last[1], self.last[2]
            found |= scores > score
            if part < last_part:
                found |= scores == score
            elif part == last_part:
                found |= (scores == score) & (rows <= last_row)
        return found
