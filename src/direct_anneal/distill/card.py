"""The quality a scorer keeps of the run that it was distilled from, on documents that it was not fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

BINS = 10
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def held_out(
    predicted: NDArray[np.float64],
    target: NDArray[np.float64],
    order: NDArray[np.float64],
    selected: NDArray[np.bool_],
    folds: NDArray[np.int64],
) -> dict[str, Any]:
    """Compare predictions of left-out documents with the run.

    Args:
        predicted, target: of the fit, (N,).
        order: what the target was made of, in the run's own units, larger is better; (N,).
        selected: what the run chose, (N,).
        folds: (N,), for the spread.

    Returns:
        rank_correlation (Spearman's) and its least and greatest over folds; overlap: the share of the run's choice that
        is among as many of the highest predictions, beside the share that chance would give; shares: the same for the
        leading documents of the target; calibration: for each tenth of the predictions their mean beside that of the
        target, and the slope of the target on them, which is 1 where they are neither too bold nor too timid.
    """
    correlations = [spearman(predicted[folds == fold], order[folds == fold]) for fold in np.unique(folds).tolist()]
    chosen = int(selected.sum())
    by_prediction = np.argsort(-predicted, kind="stable")
    by_order = np.argsort(-order, kind="stable")
    shares = {}
    for share in _SHARES:
        if (count := round(share * len(order))) >= 1:
            shares[f"{share:g}"] = len(np.intersect1d(by_order[:count], by_prediction[:count])) / count
    centred = predicted - predicted.mean()
    spread = float(np.sum(centred**2))
    return {
        "rank_correlation": spearman(predicted, order),
        "rank_correlation_of_folds": [min(correlations), max(correlations)],
        "overlap": float(selected[by_prediction[:chosen]].mean()),
        "overlap_by_chance": chosen / len(selected),
        "overlap_of_leading": shares,
        "calibration": [
            {"predicted": float(predicted[part].mean()), "target": float(target[part].mean()), "documents": len(part)}
            for part in np.array_split(by_prediction[::-1], min(BINS, len(order)))
        ],
        "slope": float(np.sum(centred * (target - target.mean())) / spread) if spread > 0 else None,
    }


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the rank correlation; 0 where one of the two is constant."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = float(np.sqrt(np.sum(a**2) * np.sum(b**2)))
    return float(np.sum(a * b)) / scale if scale > 0 else 0.0
