"""Matching a target: ‖Σ w_i x_i − t‖² made least. Convex to minimise, so the relaxed answer is global up to a gap.

N samples, R features, k atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from direct_anneal.solver.feasible import Float, Mask, Polytope
from direct_anneal.solver.local_search import swap
from direct_anneal.solver.matrix import FeatureMatrix

_MAX_STEPS = 200
_SETTLED = 1e-3  # relative: whole samples stay farther from the relaxed optimum than this
_ATOMS = 16  # vertices kept apart, each of N weights


@dataclass(frozen=True)
class Matched:
    """The relaxed optimum and a selection near it.

    Attributes:
        chosen: (N,) bool.
        weights: (N,), relaxed.
        relaxed: the objective of `weights`.
        bound: no selection has a larger objective.
        steps: of Frank and Wolfe.
        swaps: pairs that were exchanged after rounding.
    """

    chosen: Mask
    weights: Float
    relaxed: float
    bound: float
    steps: int
    swaps: int


def match(features: FeatureMatrix, target: Float, polytope: Polytope, apart: float) -> Matched:
    """Maximise ‖t − s‖² − ‖u − t‖², u = Σ w_i x_i: by how much a selection is nearer to t than s is.

    Every step solves the linear problem for the gradient, 2⟨t − u, x_i⟩, and moves to the best mixture of the vertices
    so far (fully corrective Frank–Wolfe, with the two lightest vertices merged where there are 17); what the linear
    problem promises beyond the value reached bounds what is left. Then the samples with the largest weights are
    taken as whole ones, and pairs exchanged while that helps.

    Args:
        target: t, shape (R,).
        apart: ‖t − s‖².

    Source: Frank and Wolfe, Naval Research Logistics 3 (1956); Jaggi, ICML 2013, for the corrective form and the gap.
    Cost: two passes over the features a step, some 30 to 100 steps to a gap of 10⁻³; 16 N weights.
    """
    first = polytope.maximise(features.dot(target))
    atoms, shares = [first.weights], np.ones(1)
    offsets = [features.weighted_sum(first.weights) - target]  # u − t of each atom
    steps = 0
    while True:
        offset = shares @ np.stack(offsets)
        value = apart - float(offset @ offset)
        slope = features.dot(-2.0 * offset)
        vertex = polytope.maximise(slope)
        here = -2.0 * float(offset @ (offset + target))  # Σ w_i slope_i of the mixture
        if vertex.value - here <= _SETTLED * abs(value) or steps == _MAX_STEPS:
            break
        if len(atoms) == _ATOMS:
            atoms, offsets, shares = _merge_lightest(atoms, offsets, shares)
        atoms.append(vertex.weights)
        offsets.append(features.weighted_sum(vertex.weights) - target)
        shares = _nearest_mixture(np.stack(offsets, axis=1))
        kept = np.flatnonzero(shares)
        atoms, offsets, shares = [atoms[k] for k in kept], [offsets[k] for k in kept], shares[kept]
        steps += 1
    # The objective is concave, so nothing lies above its tangent here.
    highest = vertex if polytope.size is None else polytope.maximise(slope, full=False)
    bound = value + max(0.0, highest.value - here)
    weights = sum((share * atom for share, atom in zip(shares, atoms, strict=True)), start=np.zeros(len(polytope.cost)))
    weights = np.clip(weights, 0.0, 1.0)  # shares add up to 1 but for rounding
    rounded = polytope.maximise(weights * polytope.weight).chosen  # by weight, per token where they count
    (search,) = swap(features, polytope, [rounded], features.weighted_sum(rounded.astype(np.float64))[:, None], target)
    return Matched(search.chosen, weights, value, bound, steps, search.swaps)


def _nearest_mixture(points: Float) -> Float:
    """Return the shares, ≥ 0 and 1 together, of the point of the columns' hull that is nearest to the origin; shape
    (k,).

    Over x = s α with Σ α = 1, ‖P x‖² + (Σ x − 1)² is least at ‖P α‖² / (1 + ‖P α‖²) for the best s: the α that makes
    this least makes ‖P α‖ least, and that is a problem of non-negative least squares.
    """
    scale = np.sqrt(np.square(points).sum(axis=0).mean()) or 1.0
    stacked = np.vstack([points / scale, np.ones(points.shape[1])])
    shares, _ = nnls(stacked, np.append(np.zeros(len(points)), 1.0))
    return np.asarray(shares / shares.sum())


def _merge_lightest(atoms: list[Float], offsets: list[Float], shares: Float) -> tuple[list[Float], list[Float], Float]:
    """Take away one atom, and keep the mixture."""
    light, lighter = np.argsort(shares, kind="stable")[:2][::-1]
    total = shares[light] + shares[lighter]
    a, b = shares[light] / total, shares[lighter] / total
    kept = [k for k in range(len(atoms)) if k not in (light, lighter)]
    return (
        [*(atoms[k] for k in kept), a * atoms[light] + b * atoms[lighter]],
        [*(offsets[k] for k in kept), a * offsets[light] + b * offsets[lighter]],
        np.append(shares[kept], total),
    )
