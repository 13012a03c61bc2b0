"""The samples that gain most, found again and again without a pass over all rows each time.

N samples, n of them held in memory, R sketch size, p the pull of a search, σ its sign.

By itself a sample gains σ‖x‖² + 2⟨p, x⟩ where it comes in, and σ‖x‖² − 2⟨p, x⟩ where it goes out. A pull that moved by
d changes 2⟨p, x⟩ by 2 d ‖x‖ at most, and 0 ≤ ‖x‖ ≤ ‖W‖ ‖z‖. So the rows that gain most at some pull are held, and as
long as the bounds rule out all others, the best are among these. Nor need the others' lengths be known, which take R²
each where rows are mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.solver.feasible import Float, Mask, Polytope, largest, nth_largest
from direct_anneal.solver.matrix import FeatureMatrix, Held

Positions = NDArray[np.intp]

_WAYS = (1.0, -1.0)  # in, and out: the sign of a slope in a gain
_HELD_BYTES = 128 << 20  # of float32 rows
_SHARE = 8  # at most one in so many samples is held: to read more of them takes as long as a pass
_FEWEST = 4  # times as many as are asked for: not worth holding below


class Lengths:
    """‖x‖² of samples, computed where it is asked for; searches share them.

    Attributes:
        bounds: of ‖x‖ from above, shape (N,).
        known: shape (N,) bool.
        squared: ‖x‖² where it is known, up to float32's rounding, shape (N,).
    """

    def __init__(self, features: FeatureMatrix) -> None:
        self._features = features
        self.bounds = features.longest()
        self.known: Mask = np.zeros(len(self.bounds), dtype=np.bool_)
        self.squared = np.zeros(len(self.bounds))

    def learn(self, held: Held) -> None:
        """Compute those of some rows."""
        if not self.known[held.positions].all():
            self.squared[held.positions], self.known[held.positions] = held.squared_norms(), True

    def learn_all(self) -> Float:
        """Return ‖x‖² of all samples, shape (N,). Cost: one pass, where some are not known."""
        if not self.known.all():
            self.squared = self._features.squared_norms(rough=True)
            self.known = np.ones_like(self.known)
        return self.squared

    def at_most(self, sign: float) -> Float:
        """Return upper bounds on σ‖x‖², shape (N,)."""
        return sign * np.where(self.known, self.squared, np.square(self.bounds) if sign > 0 else 0.0)


@dataclass(frozen=True)
class _Stage:
    """Rows that are held, and since when.

    Attributes:
        pull: as it was then, shape (R,).
        held: of both sides.
        others: bounds on what any other gained then by coming in, and by going out.
        longest: bound on the others' ‖x‖.
    """

    pull: Float
    held: Held
    others: tuple[float, float]
    longest: float


class Screen:
    """The best candidates of one search.

    Args:
        sign: σ.
        pull: p, shape (R,).
        slope: 2⟨p, x⟩ of all samples, shape (N,), up to float32's rounding.
    """

    def __init__(
        self, features: FeatureMatrix, lengths: Lengths, polytope: Polytope, sign: float, pull: Float, slope: Float
    ) -> None:
        self._features, self._lengths, self._sign, self._place = features, lengths, sign, polytope.place
        self._free: Mask = np.zeros(len(slope), dtype=np.bool_)
        self._free[polytope.free] = True
        self._pull, self._slope = pull, slope
        self._stage: _Stage | None = None
        self._room = min(len(slope) // _SHARE, _HELD_BYTES // (4 * features.stored_size))
        self._served = 0  # how often the stage was of use since it was made

    def best(self, pull: Float, chosen: Mask, count: int) -> tuple[Positions, Positions] | None:
        """Return the samples, `count` at most, that gain most by coming in, and those that do by going out.

        Equals come in in the order of ties, and go out against it. None where one side is empty.

        Args:
            pull: p as it is now, shape (R,).
        """
        sides = [self._free & ~chosen, self._free & chosen]
        counts = [min(count, int(np.count_nonzero(side))) for side in sides]
        if not all(counts):
            return None
        if self._stage is not None:
            if (found := self._among_held(self._stage, pull, chosen, counts)) is not None:
                self._served += 1
                return found
            self._room = self._room if self._served else self._room // 4
        self._move(pull)
        self._stage, self._served = None, 0
        if self._room >= _FEWEST * count:
            stage = self._held(sides)
            if (found := self._among_held(stage, pull, chosen, counts)) is not None:
                self._stage = stage
                return found
        length = self._sign * self._lengths.learn_all()
        ins, outs = (
            self._first(way, (way * self._slope + length)[side], np.flatnonzero(side), number)
            for way, side, number in zip(_WAYS, sides, counts, strict=True)
        )
        return ins, outs

    def all_gains(self, pull: Float) -> Float:
        """Return what every sample gains by coming in, shape (N,). Cost: two passes at most."""
        self._move(pull)
        return self._slope + self._sign * self._lengths.learn_all()

    def _move(self, pull: Float) -> None:
        """Have the slopes of all samples for a pull."""
        if pull is not self._pull:
            self._pull, self._slope = pull, 2.0 * self._features.dot(pull, rough=True)

    def _held(self, sides: list[Mask]) -> _Stage:
        """Hold the samples that may gain most for the pull of the slopes."""
        most, held, others = self._lengths.at_most(self._sign), [], []
        for way, side in zip(_WAYS, sides, strict=True):
            positions = np.flatnonzero(side)
            bound = (way * self._slope + most)[positions]
            taken = largest(bound, min(self._room // 2, len(positions)), np.arange(len(positions)))
            held.append(positions[taken])
            bound[taken] = -np.inf
            others.append(float(bound.max()))
        rows = self._features.held(np.sort(np.concatenate(held)))
        self._lengths.learn(rows)
        rest = self._free.copy()
        rest[rows.positions] = False
        longest = float(self._lengths.bounds[rest].max(initial=0.0))
        return _Stage(self._pull, rows, (others[0], others[1]), longest)

    def _among_held(
        self, stage: _Stage, pull: Float, chosen: Mask, counts: list[int]
    ) -> tuple[Positions, Positions] | None:
        """Return the best of the rows that are held; None where others may be better."""
        positions, moved = stage.held.positions, float(np.linalg.norm(pull - stage.pull))
        reach = 2.0 * moved * stage.longest
        if moved > 0:  # float32 rounded a slope there, and would round it here
            rounding = (self._features.stored_size + 2) * 2.0**-24
            reach += 2.0 * rounding * float(np.linalg.norm(pull) + np.linalg.norm(stage.pull)) * stage.longest
        slope = 2.0 * stage.held.dot(pull)
        length = self._sign * self._lengths.squared[positions]
        found = []
        for way, others, count in zip(_WAYS, stage.others, counts, strict=True):
            mine = np.flatnonzero(self._free[positions] & (chosen[positions] == (way < 0)))
            gain = way * slope[mine] + length[mine]
            if len(mine) < count or not nth_largest(gain, count) > others + reach:
                return None
            found.append(self._first(way, gain, positions[mine], count))
        return found[0], found[1]

    def _first(self, way: float, gain: Float, positions: Positions, count: int) -> Positions:
        """Return the positions with the largest gains, in the order of ties or, of those that go out, against it."""
        surely = np.flatnonzero(gain >= nth_largest(gain, count))
        order = surely[np.argsort(way * self._place[positions[surely]])]
        return positions[largest(gain, count, order)]
