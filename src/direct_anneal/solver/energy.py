"""The published objective, ‖Σ w_i x_i‖²: convex, so a local method with several starts.

N samples, K selected, R sketch size, k starts (columns that share each pass over the features).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from direct_anneal.solver.feasible import Polytope, Relaxed
from direct_anneal.solver.local_search import swap
from direct_anneal.solver.matrix import FeatureMatrix

Float = NDArray[np.float64]

_START_DIRECTIONS = 4  # starts: the uniform weights, and both signs of this many leading singular directions
_CROSSED = 4  # ends whose sums and differences are tried
_ROUNDS = 3
_MAX_STEPS = 100
_SETTLED = 1e-6  # relative: a rise below it ends an ascent: in large pools there is no end of steps that bring less
_HOPE = 4  # a start is given up when so many more rises like its last would not bring it among the best
_PROMISING = 0.98  # of the best rounded objective: what swaps are tried on
_BOUND_DIRECTIONS = 16


@dataclass(frozen=True)
class Ascent:
    """One start of the successive approximation, run to its end.

    Attributes:
        name: where it started.
        steps: linear problems solved; few where it was given up.
        relaxed: objective of the weights it ended at.
        rounded: objective of the integer selection before swaps.
        final: the same after swaps.
        swaps: how many were made.
    """

    name: str
    steps: int
    relaxed: float
    rounded: float
    final: float
    swaps: int


def maximise_energy(
    features: FeatureMatrix, polytope: Polytope
) -> tuple[NDArray[np.bool_], Float, float, list[Ascent]]:
    """Ascend by successive convex approximation from several starts, cross their ends, then swap, keeping the best.

    Each step linearises at w, c = 2 X Xᵀ w, and solves the linear problem exactly; since the objective is convex it
    never falls. The sums and differences of the best ends are starts of the next round, until a round brings nothing:
    where many directions are alike, that finds what hundreds of random starts do not. At last the vertices are rounded,
    and pairs are exchanged while that helps.

    Returns:
        chosen (N,) bool; relaxed weights (N,); an upper bound on the objective; one record for each start.

    Source: arXiv:2605.31175, Algorithm 2; the exact step, the starts, the swaps and the bound are ours.
    Cost: one pass for the Gram matrix (2 N R²), some sixty passes of 2 N R k, O(k) eigenproblem work beside them.
    """
    names, solutions, bound = _begin(features, polytope)
    solutions, relaxed, steps = _ascend(features, polytope, solutions)
    for number in range(_ROUNDS if polytope.is_cheap else 0):
        best_before = max(relaxed)
        crossings, gains = _cross(features, solutions, relaxed)
        if not gains:
            break
        crossed = [polytope.maximise(gain) for gain in gains]
        ascended, reached, counts = _ascend(features, polytope, crossed, beside=relaxed)
        names += [f"round {number + 1}: {crossing}" for crossing in crossings]
        solutions, relaxed, steps = solutions + ascended, relaxed + reached, steps + counts
        if max(relaxed) <= best_before * (1 + 1e-9):
            break

    chosen = [solution.chosen for solution in solutions]
    sums = features.weighted_sum(np.stack(chosen, axis=1).astype(np.float64))  # (R, k)
    rounded = np.einsum("rk,rk->k", sums, sums).tolist()
    ends = [selection.tobytes() for selection in chosen]
    firsts = [ends.index(end) for end in ends]  # starts often meet
    # Swaps would not bring the others to the front.
    tried = [k for k in sorted(set(firsts)) if rounded[k] >= _PROMISING * max(rounded)]
    found = dict(zip(tried, swap(features, polytope, [chosen[k] for k in tried], sums[:, tried]), strict=True))
    records = []
    for k, (name, first) in enumerate(zip(names, firsts, strict=True)):
        final, swaps = (found[first].value, found[first].swaps) if first in found else (rounded[k], 0)
        records.append(Ascent(name, steps[k], relaxed[k], rounded[k], final, swaps))
    # Among those that are equal but for rounding, the first.
    value = max(search.value for search in found.values())
    best = next(k for k in tried if found[k].value >= value * (1 - 1e-12))
    return found[best].chosen, solutions[best].weights, bound, records


def _begin(features: FeatureMatrix, polytope: Polytope) -> tuple[list[str], list[Relaxed], float]:
    """Return the starts' names and first answers, and an upper bound on the objective.

    Starts are the gradient at uniform weights, and both signs of the leading directions.
    """
    gram = features.gram()
    leading = [max(0, len(gram) - _BOUND_DIRECTIONS - 1), len(gram) - 1]
    eigenvalues, eigenvectors = eigh(gram, subset_by_index=leading, overwrite_a=True, check_finite=False)
    eigenvalues, eigenvectors = np.maximum(eigenvalues[::-1], 0.0), eigenvectors[:, ::-1]
    along = features.dot(eigenvectors[:, :_BOUND_DIRECTIONS])  # (N, ≤16)
    names = ["uniform"]
    solutions = [polytope.maximise(features.dot(features.weighted_sum(np.ones(features.shape[0]))))]
    reached = np.empty(along.shape[1])
    for j, gain in enumerate(along.T):
        loose = [polytope.maximise(sign * gain, full=False) for sign in (1.0, -1.0)]
        reached[j] = max(solution.value for solution in loose)
        if j < _START_DIRECTIONS:
            names += [f"+direction {j + 1}", f"-direction {j + 1}"]
            by_samples = polytope.size is None  # no difference then
            solutions += loose if by_samples else [polytope.maximise(sign * gain) for sign in (1.0, -1.0)]
    return names, solutions, _bound(reached, eigenvalues, polytope.max_count())


def _cross(features: FeatureMatrix, solutions: list[Relaxed], values: list[float]) -> tuple[list[str], list[Float]]:
    """Return names and first gains of the sums and differences of the best few ends that differ."""
    ends: list[int] = []
    for k in np.argsort(-np.array(values), kind="stable").tolist():
        if not ends or values[k] < values[ends[-1]] * (1 - 1e-9):
            ends.append(k)
    ends = ends[:_CROSSED]
    sums = features.weighted_sum(np.stack([solutions[k].weights for k in ends], axis=1))  # (R, ≤4)
    pairs = list(itertools.combinations(range(len(ends)), 2))
    if not pairs:
        return [], []
    crossed = [sums[:, a] + sign * sums[:, b] for a, b in pairs for sign in (1.0, -1.0)]
    names = [f"{a + 1} {sign} {b + 1}" for a, b in pairs for sign in ("plus", "minus")]
    return names, list(np.ascontiguousarray(features.dot(np.stack(crossed, axis=1)).T))


def _ascend(
    features: FeatureMatrix, polytope: Polytope, solutions: list[Relaxed], beside: Sequence[float] = ()
) -> tuple[list[Relaxed], list[float], list[int]]:
    """Run all starts in lockstep, so that they share the passes over the features.

    A start ends where it no longer rises, or has no hope of being among the best few of these and those `beside` it.
    """
    values = [-np.inf] * len(solutions)
    steps = [1] * len(solutions)
    active = list(range(len(solutions)))
    for _ in range(_MAX_STEPS):
        sums = features.weighted_sum(np.stack([solutions[k].weights for k in active]).T)  # (R, k)
        reached = np.einsum("rk,rk->k", sums, sums)
        before = [values[k] for k in active]
        for j, k in enumerate(active):
            values[k] = max(values[k], float(reached[j]))
        bar = sorted([*values, *beside])[-_CROSSED:][0]
        rising = [
            j
            for j, (last, now) in enumerate(zip(before, reached, strict=True))
            if now > last * (1 + _SETTLED) and now + _HOPE * (now - last) >= bar
        ]
        if not rising:
            break
        active = [active[j] for j in rising]
        gains = 2.0 * features.dot(sums[:, rising])  # (N, k)
        for j, k in enumerate(active):
            solutions[k] = polytope.maximise(np.ascontiguousarray(gains[:, j]), after=solutions[k])
            steps[k] += 1
    return solutions, values, steps


def _bound(reached: Float, eigenvalues: Float, count: float) -> float:
    """Return an upper bound on the objective, ours.

    With V the eigenvectors of XᵀX, ‖Xᵀw‖² = Σ_j (Σ_i w_i ⟨x_i, v_j⟩)². Each of the first m terms is at most the
    square of a linear problem's optimum; the rest is at most λ_{m+1} ‖w‖² ≤ λ_{m+1} Σ w_i. The least over m ≤ 16 is
    returned; m = 0 is the plain σ₁² K.

    Args:
        reached: the optima for v_j and −v_j, the larger of both, shape (16,).
        eigenvalues: λ, descending.
        count: the largest Σ w_i.
    """
    heads = np.cumsum([0.0, *np.square(reached)])
    tails = np.append(eigenvalues, 0.0)[: len(heads)] * count
    return float((heads + tails).min())
