"""Retention: what a selection does to text that must not get worse, as a limit that the solver keeps.

N usable documents of the pool, P of the retained text, R sketch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.errors import InputError
from direct_anneal.objectives import Built, Inputs, SelectionObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.selection.known import Known
from direct_anneal.solver import FeatureMatrix, InfeasibleError, Linear, Selection

NAME = "the effect on retained text"
COLUMN = "retain"
DEFAULT_FLOOR = 1.0
_BLOCK_BYTES = 8 << 20

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Retention:
    """Each document's effect on the retained text, to first order, and the least that a selection must have.

    A step down document i's gradient lowers the retained text's mean loss by e_i = ⟨x_i, r̄⟩ a unit of rate; below 0 it
    raises it. r̄ is the mean of the retained documents' x. x are unit gradients or raw ones, as the objective counts
    them; raw where it has none.

    Attributes:
        effects: e, (N,).
        counts: what an effect counts, (N,): a document's tokens where the size is in tokens, since each is trained on,
            else 1; 1 for raw gradients of summed losses, too, which have counted tokens already.
        sizes: of the documents, (N,): tokens, or 1.
        floor_ratio: X, see `floor`.

    Source: ours; the inner product is that of influence by first-order steps.
    """

    effects: Float
    counts: Float
    sizes: Float
    floor_ratio: float

    @property
    def average(self) -> float:
        """Mean effect of a random selection, a sample or token: the whole pool's."""
        return float(self.effects @ self.counts / self.sizes.sum())

    @property
    def floor(self) -> float:
        """The least mean effect that a selection must have: X times a random one's.

        average + (X − 1) |average|, so that a larger X asks for more where random documents do harm, too.
        """
        return self.average + (self.floor_ratio - 1) * abs(self.average)

    def mean(self, selection: Selection) -> float:
        """Return mean effect of a selection, a sample or token."""
        chosen = selection.indices
        return math.fsum(self.effects[chosen] * self.counts[chosen]) / float(self.sizes[chosen].sum())

    def ratio(self, mean: float) -> float:
        """Return a mean effect in units of X: the inverse of `floor`."""
        return 1 + (mean - self.average) / abs(self.average) if self.average else 1.0

    def limited(self, built: Built) -> Built:
        """Return the same problem under Σ_i w_i (c_i e_i − n_i floor) ≥ 0, which is the floor whatever the size comes
        to.
        """
        limit = Linear(self.counts * self.effects - self.sizes * self.floor, floor=0.0, name=NAME)
        problem = replace(built.problem, linear=(*built.problem.linear, limit))
        return replace(built, problem=problem, columns={**built.columns, COLUMN: self.effects})

    def explained(self, error: InputError, capacity: float) -> InputError:
        """Return the error in the option's own unit where this limit is what stands in the way; else as it is.

        Args:
            capacity: size asked for, in samples or tokens.
        """
        cause = error.__cause__
        found = cause.relaxations if isinstance(cause, InfeasibleError) else ()
        if not (needed := [one.needed for one in found if NAME in one.name]):
            return error
        most = self.ratio(self.floor + needed[0] / capacity)
        most = math.floor(1e3 * most - 1e-3) / 1e3  # whole documents may reach a little less than fractions
        return InputError(
            field="retain_floor",
            must=f"be at most about {most:g}, with all else that is asked",
            got=self.floor_ratio,
            do="lower it, or relax one of the other constraints",
        )

    def entry(self, selection: Selection) -> dict[str, Any]:
        """Return the manifest's entry: mean effects of a random selection and of this one, the floor, and X of both."""
        reached = self.mean(selection)
        return {
            "random": self.average,
            "selected": reached,
            "floor": self.floor,
            "floor_ratio": self.floor_ratio,
            "reached_ratio": self.ratio(reached),
            "harmful": int((self.effects[selection.indices] < 0).sum()),
        }


def retention_of(
    objective: SelectionObjective, inputs: Inputs, known: Known, floor_ratio: float | None
) -> Retention | None:
    """Measure what each document does to the retained text; None where none is retained.

    Args:
        objective: whose way of counting gradients is taken.
        floor_ratio: X; `DEFAULT_FLOOR` where left out.

    Raises:
        InputError: the retained text has no mean gradient.

    Cost: one pass over the pool's sketches, O(N R).
    """
    if known.retain is None:
        return None
    unit = getattr(objective, "gradients", "raw") == "unit"
    rows = np.concatenate([np.asarray(block[:], dtype=np.float64) for block in known.retain.units])
    mean = (np.ones(len(rows)) if unit else known.retain.norms) @ rows / len(rows)
    if not np.any(mean):
        raise InputError(
            subject="the mean gradient of the retained text", must="be other than 0", got="but it is 0", do="add text"
        )
    pool = inputs.gradients("pool")
    matrix = FeatureMatrix(pool.units, scale=None if unit else pool.norms, mapper=inputs.mapper)
    effects = matrix.of_rows(partial(_products, mean), _BLOCK_BYTES)
    ones = np.ones(len(effects))
    sizes = ones if inputs.token_budget is None else np.asarray(inputs.num_tokens, dtype=np.float64)
    counts = ones if inputs.summed and not unit else sizes
    return Retention(effects, counts, sizes, DEFAULT_FLOOR if floor_ratio is None else floor_ratio)


def _products(mean: Float, rows: Float) -> Float:
    return np.asarray(rows @ mean)


def solved(
    objective: SelectionObjective, inputs: Inputs, retention: Retention | None, *, relax: bool
) -> tuple[Built, Selection, float | None]:
    """Build and solve a problem, as `solve_within`; retained text gets no worse than it may.

    Raises:
        InputError: as of `solve_within`; names the largest floor of retention where that stands in the way.
    """
    built = objective.build(inputs)
    if retention is None:
        return solve_within(objective, built, relax=relax)
    try:
        return solve_within(objective, retention.limited(built), relax=relax)
    except InputError as error:
        capacity = inputs.num_selected if inputs.token_budget is None else inputs.token_budget
        assert capacity is not None
        raise retention.explained(error, capacity) from error
