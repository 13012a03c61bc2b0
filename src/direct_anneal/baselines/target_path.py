"""Target-aligned paths (arXiv:2605.09404): the relative drop of a document's loss along a path towards the target.

Its depth is what folds of the validation set that are left out still gain.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates


def target_path(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature for all)
    """Return (ℓ(θ_s) − ℓ(θ_T)) / ℓ(θ_s), (N,); NaN where the checkpoint's loss is 0."""
    start, end = candidates.losses("start"), candidates.losses("target")
    relative: NDArray[np.float64] = np.full(len(start), np.nan)
    np.divide(start - end, start, out=relative, where=start > 0)
    return relative
