"""Swaps: what improves a selection of whole samples under ‖Σ x_i‖² or −‖Σ x_i − t‖² when nothing else does.

N samples, R sketch size, k selections (columns that share the first pass over the features).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.solver.feasible import Float, Mask, Polytope
from direct_anneal.solver.matrix import FeatureMatrix
from direct_anneal.solver.screening import Lengths, Screen

_CANDIDATES = 64
_MAX_SWAPS = 10_000
_WORTH = 1e-8  # relative: what a swap must bring; in large pools there is no end of pairs that bring less


def swap(
    features: FeatureMatrix, polytope: Polytope, starts: list[Mask], totals: Float, target: Float | None = None
) -> list[Search]:
    """Swap one chosen sample for one that is not, best pair first, while the objective rises.

    The objective is σ ‖u − t‖²: far from nothing (σ = 1, t = 0), or near a target (σ = −1). A swap of i (in) for o
    (out) changes it by 2σ⟨u − t, x_i − x_o⟩ + σ‖x_i − x_o‖². The pairs looked at are those of the 64 samples on either
    side with the largest terms of their own (`Screen` finds them); among these, swaps follow one another until none
    helps. Then come the next 64; a search ends when those have none.

    Args:
        starts: k selections, each (N,) bool.
        totals: their sums u, shape (R, k).
        target: t, shape (R,); none for σ = 1.
    """
    sign = 1.0 if target is None else -1.0
    pulls = totals if target is None else target[:, None] - totals
    lengths, slopes = Lengths(features), 2.0 * features.dot(pulls, rough=True)
    searches = []
    for chosen, pull, slope in zip(starts, pulls.T, slopes.T, strict=True):
        screen = Screen(features, lengths, polytope, sign, pull, slope)
        searches.append(Search(polytope, screen, chosen, pull, sign))
    for search in searches:
        while search.improve(features):
            pass
    ends = features.weighted_sum(np.stack([search.chosen for search in searches], axis=1).astype(np.float64))
    ends = ends if target is None else target[:, None] - ends
    for search, start, before, after in zip(searches, starts, pulls.T, ends.T, strict=True):
        search.value = sign * float(after @ after)
        # By tokens, swaps may leave room that only a loss can fill; then the start was the better selection.
        if search.value < sign * float(before @ before):
            search.chosen, search.value, search.swaps = start, sign * float(before @ before), 0
    return searches


class Search:
    """Swaps from one selection.

    Attributes:
        chosen: (N,) bool.
        pull: σ (u − t), half the objective's gradient, shape (R,).
        value: σ ‖u − t‖², once the search has ended.
        swaps: how many were made.
    """

    def __init__(self, polytope: Polytope, screen: Screen, chosen: Mask, pull: Float, sign: float) -> None:
        self._polytope, self._screen, self._sign = polytope, screen, sign
        self.chosen, self.pull, self.value, self.swaps = chosen.copy(), pull, 0.0, 0

    def improve(self, features: FeatureMatrix) -> bool:
        """Swap among the best candidates; where that does not help, complete the selection and end.

        Returns:
            whether other candidates may bring more.
        """
        helped = self.swaps < _MAX_SWAPS and self._exchange(features)
        if not helped and self._polytope.size is not None:
            self.chosen = self._polytope.complete(self.chosen, self._screen.all_gains(self.pull))
        return helped

    def _exchange(self, features: FeatureMatrix) -> bool:
        polytope = self._polytope
        found = self._screen.best(self.pull, self.chosen, _CANDIDATES)
        if found is None:
            return False
        ins, outs = found
        candidates = _Candidates(ins, outs, features.rows(ins), features.rows(outs), self.pull, self._sign)
        before = self.chosen.copy(), self.pull, self.swaps
        helped = self._follow(candidates, check=False)
        if helped and not polytope.feasible(self.chosen):  # sums are rounded; the promise is checked on the whole
            self.chosen, self.pull, self.swaps = before
            helped = self._follow(candidates, check=True)
        return helped

    def _follow(self, candidates: _Candidates, *, check: bool) -> bool:
        """Swap among the candidates until no pair helps.

        Args:
            check: end before a swap that breaks a constraint when everything is summed anew, which costs O(K) each.
        """
        polytope, chosen, ins, outs = self._polytope, self.chosen, candidates.ins, candidates.outs
        up, down = candidates.up, candidates.down
        totals = polytope.totals(chosen)
        helped = False
        while True:
            gain = up[:, None] + down[None, :] - candidates.cross
            # A sample that was swapped is on the other side now; a later pass may swap it back.
            open_ = ~chosen[ins][:, None] & chosen[outs][None, :] & polytope.exchanges(totals, ins, outs)
            gain = np.where(open_, gain, -np.inf)
            best, least = gain.max(), self.pull @ self.pull
            if best <= _WORTH * least:
                return helped
            # Among pairs that are equal but for rounding, the first in the order of ties.
            i, o = np.argwhere(gain >= best - 1e-12 * least)[0]
            chosen[ins[i]], chosen[outs[o]] = True, False
            if check and not polytope.feasible(chosen):
                chosen[ins[i]], chosen[outs[o]] = False, True
                return False
            totals = polytope.swapped(totals, int(ins[i]), int(outs[o]))
            step = self._sign * (candidates.x_in[i] - candidates.x_out[o])
            self.pull = self.pull + step
            up, down = up + 2.0 * candidates.x_in @ step, down - 2.0 * candidates.x_out @ step
            self.swaps, helped = self.swaps + 1, True


class _Candidates:
    """Samples that may come in or go out, and what each pair of them brings.

    Attributes:
        up, down: gain of a sample that comes in, and of one that goes out, by itself.
        cross: what a pair brings less than both.
    """

    def __init__(
        self, ins: NDArray[np.intp], outs: NDArray[np.intp], x_in: Float, x_out: Float, pull: Float, sign: float
    ) -> None:
        self.ins, self.outs, self.x_in, self.x_out = ins, outs, x_in, x_out
        # What they were found by may be rough.
        self.up = sign * np.vecdot(x_in, x_in) + 2.0 * np.vecdot(x_in, pull)
        self.down = sign * np.vecdot(x_out, x_out) - 2.0 * np.vecdot(x_out, pull)
        self.cross = 2.0 * sign * x_in @ x_out.T
