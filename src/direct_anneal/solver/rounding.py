"""Whole samples from fractions of them, by small integer programs.

N samples; c gain, r reduced gain, n samples that a program may still decide about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, diags_array, vstack

from direct_anneal.solver.feasible import Float, Mask, Polytope, Relaxed
from direct_anneal.solver.infeasibility import InfeasibleError, least_relaxations

_NEIGHBOURS = 48  # samples that rounding decides about, at first
# Nodes of branch and bound: counts, since a limit in seconds would give other answers on other machines.
_ROUNDING_NODES, _PROOF_NODES = 100, 1000
_PROVABLE = 400  # samples: beyond, a proof is not attempted
_NEGLIGIBLE = 1e-6  # relative: neither is it for a gap this small, which only large pools have
_NAMED = 1024  # up to so many samples, what whole samples need is named
_CUTS = 4
_SHARPER = 1e3  # rows are met to 1e-6 absolute by HiGHS: to 1e-9 of what one selected sample may have, scaled so


def near(polytope: Polytope, gain: Float, weights: Float, distance: Float) -> Mask:
    """Return a feasible selection near the relaxed weights, and the best one there.

    The rounding rule: the samples whose reduced gain is nearest to zero, and all that are split, are decided by an
    integer program that maximises the gain under every constraint; all others stay as the relaxation has them. Where
    that has no answer, four times as many are decided, and at last all. Among samples that are alike to gain and
    constraints the first in the order of ties are taken.

    Args:
        gain: c, shape (N,).
        weights: of the relaxation, shape (N,).
        distance: |r|, shape (N,).

    Raises:
        InfeasibleError: fractions of samples meet the constraints, but no whole ones do, or none was found.
    """
    free = polytope.free
    if not len(free) and polytope.feasible(polytope.forced_in):
        return polytope.forced_in
    ranked = free[np.argsort(distance[free], kind="stable")]
    split = free[np.isin(free, np.flatnonzero((weights > 1e-9) & (weights < 1 - 1e-9)))]
    count = _NEIGHBOURS
    while True:
        # Equals stay together: which of them are taken is decided below.
        core = free[(distance[free] <= distance[ranked[:count]].max(initial=0.0)) | np.isin(free, split)]
        program = solve_whole(polytope, gain, weights > 0.5, core, _ROUNDING_NODES)
        if program.chosen is not None:
            return polytope.complete(program.chosen, gain)
        if len(core) == len(free):
            break
        count *= 4
    if len(free) <= _NAMED and (relaxations := least_relaxations(polytope, whole=True)):
        raise InfeasibleError.of(relaxations)
    raise InfeasibleError(
        "fractions of samples would meet every constraint, but no selection of whole ones was found that does: widen "
        f"{', '.join(polytope.rows.names)} by about one sample"
    )


def best(polytope: Polytope, gain: Float, relaxed: Relaxed, chosen: Mask) -> tuple[Mask, float, bool]:
    """Return the best selection for a linear objective, and a bound; no better one exists where it says so.

    With U the relaxation's value and L that of a selection, a sample whose reduced gain is farther from zero than U − L
    is decided: on the other side, no selection exceeds L. An integer program decides about the few that are left.

    Args:
        relaxed: of the polytope with room left, if by tokens.
        chosen: a feasible selection.

    Returns:
        a selection (N,) with no less gain, a bound on the gain of any, and whether the program was solved to its end.
    """
    reduced = polytope.reduced(gain, relaxed.multipliers)
    reduced = reduced - polytope.price(reduced, full=False) * polytope.weight
    ranked = np.sort(np.abs(reduced[polytope.free]))
    bound, proven = relaxed.value, False
    for nodes in (_ROUNDING_NODES, _PROOF_NODES):
        value = float(gain[chosen].sum())
        slack = bound - value
        if slack <= 1e-9 * abs(bound):
            return chosen, bound, True
        # First about the nearest ones, for a better L; then about all that are open.
        last = nodes == _PROOF_NODES
        reach = slack + 1e-9 * float(np.abs(gain).max())
        if not last and len(ranked) > _NEIGHBOURS:
            reach = min(reach, float(ranked[_NEIGHBOURS]))
        core = polytope.free[(np.abs(reduced) <= reach)[polytope.free]]
        if last and (len(core) > _PROVABLE or slack <= _NEGLIGIBLE * abs(bound)):
            break
        program = solve_whole(polytope, gain, reduced > 0, core, nodes)
        if program.chosen is not None:
            completed = polytope.complete(program.chosen, gain)
            # What is equal but for rounding is replaced: the program's answer has its ties in order.
            if gain[completed].sum() >= value - 1e-12 * float(np.abs(gain[completed]).sum()):
                chosen = completed
        if last:
            bound, proven = min(bound, max(program.bound, value)), program.solved
    return chosen, bound, proven


@dataclass(frozen=True)
class Program:
    """An integer program's answer.

    Attributes:
        chosen: (N,) bool, the best feasible selection found; None where there is none, or none was found.
        bound: on the gain of every feasible selection that agrees on what was settled.
        solved: whether branch and bound came to its end.
    """

    chosen: Mask | None
    bound: float
    solved: bool


def solve_whole(polytope: Polytope, gain: Float, settled: Mask, core: NDArray[np.intp], nodes: int) -> Program:
    """Return the best feasible selection that agrees with `settled` outside the core, positions in tie order."""
    settled = settled.copy()
    settled[polytope.forced_in], settled[polytope.forced_out], settled[core] = True, False, False
    fixed = float(gain[settled].sum())
    rows, size = polytope.rows, polytope.weight
    base = rows.matrix @ settled.astype(np.float64)
    room = polytope.capacity - float(size[settled].sum())
    count = max(1.0, polytope.capacity / float(size.mean()))
    linear = np.arange(len(rows.names)) >= len(rows.names) - rows.num_linear
    scale = np.where(rows.limits > 0, rows.limits / count, np.where(linear, rows.means, 1.0)) / _SHARPER
    matrix = diags_array(1 / scale) @ rows.matrix[:, core]
    # What does not matter to the choice, the same gain for all, would only coarsen HiGHS's absolute tolerance of 1e-6.
    middle = 0.0 if polytope.size is not None or not len(core) else float(np.median(gain[core]))
    unit = 1e4 / max(float(np.abs(gain[core] - middle).max(initial=0.0)), 1e-300)
    constraints = [
        LinearConstraint(matrix, (rows.lower - base) / scale, (rows.upper - base) / scale),
        LinearConstraint(csr_array(size[core][None]), room if polytope.size is None else -np.inf, room),
    ]
    cuts: list[csr_array] = []
    limits: list[float] = []
    for _ in range(_CUTS):
        excluded = [LinearConstraint(vstack(cuts), np.array(limits), np.inf)] if cuts else []
        result = milp(
            -(gain[core] - middle) * unit,
            integrality=np.ones(len(core), dtype=np.int64),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints + excluded,
            options={"node_limit": nodes, "mip_rel_gap": 0.0},
        )
        if result.x is None:
            return Program(None, np.inf if result.status != 2 else -np.inf, result.status == 2)
        taken = result.x > 0.5
        chosen = settled.copy()
        chosen[core[taken]] = True
        offset = fixed + middle * float(taken.sum()) if polytope.size is None else fixed
        if polytope.feasible(chosen):
            bound = offset - float(result.mip_dual_bound) / unit
            return Program(_first_of_equals(polytope, gain, chosen, core), bound, result.status == 0)
        # Met up to HiGHS's tolerance only, and we promise more: exclude this very selection.
        cuts.append(csr_array(np.where(taken, -1.0, 1.0)[None]))
        limits.append(1.0 - float(taken.sum()))
    return Program(None, np.inf, False)


def _first_of_equals(polytope: Polytope, gain: Float, chosen: Mask, core: NDArray[np.intp]) -> Mask:
    """Return the same selection, but of core samples that are alike to gain and constraints the first ones."""
    alike = [gain, polytope.weight, *polytope.cost.T, *(group.codes for group in polytope.groupings)]
    alike += [group.weight for group in polytope.groupings] + [limit.values for limit in polytope.linear]
    _, kinds = np.unique(np.stack([of[core] for of in alike], axis=1), axis=0, return_inverse=True)
    taken = np.bincount(kinds, chosen[core])
    order = np.argsort(kinds, kind="stable")
    starts = np.searchsorted(kinds[order], np.arange(len(taken)))
    place = np.empty(len(core), dtype=np.intp)
    place[order] = np.arange(len(core)) - starts[kinds[order]]
    chosen = chosen.copy()
    chosen[core] = place < taken[kinds]
    return chosen
