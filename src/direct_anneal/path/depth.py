"""Rate and depth of the path, by what a left-out fold of the validation set still gains.

k folds, P points of a walk at which the left-out loss is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PATIENCE = 3  # points in a row without a new best, after which a walk is given up


@dataclass(frozen=True)
class Depth:
    """The walk that left-out text gained most from.

    Attributes:
        learning_rate: its peak rate.
        share: of the longest walk's steps.
        gain: nats a token that left-out text gained there, mean over the folds; None where nothing was searched.
        stderr: standard error of that mean over the folds; None where nothing was searched.
        curves: by rate and fold, (share of the steps, left-out loss); for the manifest.
    """

    learning_rate: float
    share: float
    gain: float | None
    stderr: float | None
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]

    @property
    def described(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "learning_rate": self.learning_rate,
            "share": self.share,
            "left_out_gain": self.gain,
            "left_out_gain_stderr": self.stderr,
            "curves": {rate: [plain_curve(fold) for fold in folds] for rate, folds in self.curves.items()},
        }


def plain_curve(fold: Sequence[tuple[float, float]]) -> list[list[float | None]]:
    """Convert a curve for JSON, which has no word for a loss that is not finite: null."""
    return [[share, loss if np.isfinite(loss) else None] for share, loss in fold]


def known_curve(content: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    """Read a curve that `plain_curve` wrote; a loss that was not finite is infinite.

    Raises:
        TypeError, ValueError: it is none.
    """
    return [(float(share), np.inf if loss is None else float(loss)) for share, loss in content]  # type: ignore[arg-type]


def points(num_steps: int, count: int) -> list[int]:
    """Return steps at which the left-out loss is taken: 0, and about `count` more up to the last."""
    return sorted({0, *(round(num_steps * place / count) for place in range(1, count + 1))})


def has_turned(losses: Sequence[float]) -> bool:
    """True if a walk is past its best: the last few left-out losses brought nothing new."""
    best = int(np.argmin(losses))
    return not np.isfinite(losses[-1]) or len(losses) - 1 - best >= _PATIENCE


def deepest(curves: Mapping[float, Sequence[Sequence[tuple[float, float]]]]) -> Depth:
    """Choose the rate and depth of the lowest left-out loss, mean over the folds.

    Args:
        curves: by rate, of each fold (share of the steps, left-out loss), the start first. A walk that was given up
            ends early: beyond, its last loss stands for it, which is above its best.

    Returns:
        the start itself (share 0) where no walk gains anything.
    """
    best: tuple[float, float, float] | None = None
    gains: np.ndarray = np.zeros(1)
    for rate, folds in sorted(curves.items()):
        shares = sorted({share for fold in folds for share, _ in fold})
        losses = np.array([_along(fold, shares) for fold in folds])  # (k, P)
        mean = losses.mean(0)
        place = int(np.argmin(mean))
        if best is None or mean[place] < best[0]:
            best = float(mean[place]), rate, shares[place]
            gains = losses[:, 0] - losses[:, place]
    assert best is not None
    stderr = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
    told = {f"{rate:g}": folds for rate, folds in curves.items()}
    return Depth(best[1], best[2], float(gains.mean()), stderr, told)


def _along(fold: Sequence[tuple[float, float]], shares: Sequence[float]) -> list[float]:
    known = dict(fold)
    found: list[float] = []
    for share in shares:
        loss = known.get(share, found[-1] if found else np.inf)
        found.append(loss if np.isfinite(loss) else np.inf)
    return found
