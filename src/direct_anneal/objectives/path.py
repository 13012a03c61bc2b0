"""Exact progress along a descent path: how far each document's loss falls as the checkpoint learns the target.

N samples of the pool, k paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.objective import Ratio, register
from direct_anneal.config.options import require
from direct_anneal.curvature import Spectrum
from direct_anneal.errors import InputError, option
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.inputs import Built, Float, Inputs
from direct_anneal.objectives.walked import WalkOptions
from direct_anneal.path import PathLosses
from direct_anneal.solver import Linear


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class PathObjective(DamageLimits, WalkOptions):
    """Maximise Σ_i w_i s_i, s_i the drop of a document's mean token loss along the path.

    s_i = ℓ_i(θ_r) − ℓ_i(θ_T), θ_T the end of a walk on the validation set with replay of the pool among it, and θ_r the
    end of one on that replay alone; without replay (`walk_replay` 0) θ_r is the checkpoint, θ_s.

    With a path for each of k parts of the target, s_i is the mean of its drops (`parts` "sum"), or
    k − ‖1 − Σ_i w_i s_i / reach‖² is maximised ("matching"): reach is each path's progress under a selection that looks
    at no other, so that every part counts alike, and one that is far from its reach counts more.

    By tokens a document counts n_i / n̄ times, since training sees each of its tokens. Any training lowers the loss of
    damaged text, too; what bears a sign of damage (`path.damage`) is left out, unless it is forced in.

    Attributes:
        learning_rates, max_passes, num_folds, scored_ends, paths, num_clusters, walk_replay, schedule, num_restrained,
            stiff_share, scored_weights: as in `path.PathConfig`.
        along: which path s_i is the drop along: the "plain" one, or the "restrained" one beside it, whose steps keep
            off the stiff directions.
        budget_ratio, bands: of the cost in stiff directions, a_i = Σ_j λ_j ⟨v_j, ∇ℓ_i(θ_s)⟩², exact and in parameter
            space; budgets are ratios of the pool's mean, a band for each part of the directions' energy.
        parts: how several paths count together, "sum" or "matching".
        part_floor: f; where there are several paths, progress along each is at least that of an average choice of this
            size, and f times what the best choice for that path alone would add.

    Source: ours (docs/path.md); relatives are conditional loss reduction (CoLoR-Filter, arXiv:2406.10670) and
    target-aligned paths (arXiv:2605.09404).
    """

    name: ClassVar[str] = "path"
    goal: ClassVar[str] = "the largest drop of loss while the model learns the target"
    meaning: ClassVar[str] = "the drop of its loss that annealing on the validation set brings"
    not_beside: ClassVar[frozenset[str]] = frozenset({"bands", "budget_ratio"})  # of gradients' costs, which it has not
    budget_reference: ClassVar[str] = "pool"

    num_restrained: int = 0
    stiff_share: float = 0.0
    parts: Literal["sum", "matching"] = "sum"
    along: Literal["plain", "restrained"] = "plain"
    bands: int = 1
    budget_ratio: Ratio = "none"
    part_floor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        floor = self.part_floor
        require(floor is None or 0 <= floor < 1, "part_floor", "at least 0 and below 1", floor)
        ratio = self.budget_ratio
        must = "a number above 0 and at most 1e6, or none"
        require(ratio == "none" or 0 < ratio <= 1e6, "budget_ratio", must, ratio)
        require(self.bands >= 1, "bands", "at least 1", self.bands)
        if not self.num_restrained:
            unset = {"along": "plain", "bands": 1, "budget_ratio": "none", "stiff_share": 0.0}
            for field, without in unset.items():
                if getattr(self, field) != without:
                    raise InputError(
                        field=field,
                        must=f"be {without} where no directions are stiff",
                        got=getattr(self, field),
                        do=f"pass {option('num_restrained')} of 1 or more, too",
                    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"path"})

    def build(self, inputs: Inputs) -> Built:
        losses, damage = self.walked(inputs), self.damage(inputs)
        every = losses.drops
        if self.along == "restrained":
            every = self._restrained(losses)
        drops = every.mean(axis=1)
        weights = np.ones(len(drops)) if inputs.token_weights is None else inputs.token_weights
        progress = every * weights[:, None]
        may = np.ones(len(drops), dtype=bool) if damage.left_out is None else ~damage.left_out
        limits = self._floors(progress, may, losses.names, inputs)
        facts: dict[str, Any] = {"path": dict(losses.described)}
        rows, target = (drops * weights)[:, None], np.ones(1)
        objective: Literal["descent", "matching"] = "descent"
        if self.parts == "matching" and len(losses.names) > 1:
            reach = _reach(progress[may], inputs)
            rows, target, objective = progress / reach, np.ones(len(reach)), "matching"
            facts["reach"] = dict(zip(losses.names, reach.tolist(), strict=True))
        each = {f"path_{name}": every[:, place] for place, name in enumerate(losses.names)}
        costs = self._costs(losses) if self.num_restrained else None
        costs = None if costs is None else costs * weights[:, None]
        return inputs.problem(
            rows,
            objective=objective,
            target=target,
            linear=limits,
            stiff_cost=None if costs is None else costs[:, 0] if self.bands == 1 else costs,
            units=None if costs is None else costs.mean(axis=0) * inputs.expected,
            ratio=self.allowance,
            **damage.beside(
                facts=facts,
                columns={
                    "loss_start": losses.start,
                    **({} if losses.replayed is None else {"loss_replayed": losses.replayed.mean(axis=1)}),
                    "loss_end": losses.ends.mean(axis=1),
                    "path": losses.drops.mean(axis=1),
                    **(each if len(each) > 1 else {}),
                    **self._beside(losses),
                },
            ),
        )

    @property
    def allowance(self) -> float:
        """The budget's ratio as a number: infinite where there is no budget."""
        return math.inf if self.budget_ratio == "none" else self.budget_ratio

    def _restrained(self, losses: PathLosses) -> Float:
        """Return drops along the restrained paths, (N, k)."""
        found = losses.restrained_drops
        return self._there("num_restrained", found)

    def _costs(self, losses: PathLosses) -> Float:
        """Return A_ib = Σ_{j in b} λ_j ⟨v_j, ∇ℓ_i⟩² of each band b, (N, m), bands of like energy as sketched costs
        have.
        """
        slopes = self._there("num_restrained", losses.slopes)
        eigenvalues = np.array(losses.described["restrained"])
        if self.bands > len(eigenvalues):
            raise InputError(
                field="bands",
                must="leave a stiff direction to each",
                got=f"but {self.bands} are asked for and {len(eigenvalues)} directions are stiff",
                do=f"ask for fewer, or raise {option('num_restrained')}",
            )
        spectrum = Spectrum(eigenvalues, np.eye(len(eigenvalues)), len(eigenvalues), 1)
        return spectrum.band_costs(slopes, self.bands)

    def _beside(self, losses: PathLosses) -> dict[str, Float]:
        """Return columns of the restrained path: progress along it, and what the stiff directions add."""
        found = losses.restrained_drops
        if found is None:
            return {}
        restrained = found.mean(axis=1)
        return {"path_restrained": restrained, "path_stiff": losses.drops.mean(axis=1) - restrained}

    def _there(self, field: str, values: Float | None) -> Float:
        """Return what was computed for this option; refuse where it was not."""
        if values is None:
            raise InputError(
                field=field,
                must="be as it was where losses along the path were computed",
                got=f"{getattr(self, field)}, and no stiff directions are there",
                do="run select with it",
            )
        return values

    def _floors(self, progress: Float, may: NDArray[np.bool_], names: tuple[str, ...], inputs: Inputs) -> list[Linear]:
        """Return a floor of progress along each path.

        Args:
            progress: of each document along each path, as it counts, (N, k).
            may: documents that may be chosen, (N,).
        """
        if self.part_floor is None:
            return []
        average = progress[may].mean(axis=0) * inputs.expected
        floors = average + self.part_floor * np.maximum(0.0, _best(progress[may], inputs) - average)
        return [
            Linear(column, floor=float(floor), name=f"progress along {name}")
            for column, floor, name in zip(progress.T, floors, names, strict=True)
        ]


def _best(progress: Float, inputs: Inputs) -> Float:
    """Return the most progress along each path that a selection of this size can make, (k,).

    Args:
        progress: of each document that may be chosen, (n, k).
    """
    count = max(1, min(round(inputs.expected), len(progress)))
    return np.asarray(np.sort(progress, axis=0)[::-1][:count].mean(axis=0) * inputs.expected)


def _reach(progress: Float, inputs: Inputs) -> Float:
    """Return that of `_best`, (k,).

    Raises:
        InputError: there is none along some path.
    """
    best = _best(progress, inputs)
    if not (best > 0).all():
        raise InputError(
            subject="every path",
            must="be one along which some documents make progress",
            got=f"but the best {round(inputs.expected):,} of the pool make {best.min():.3g} in all along one",
            do=f"walk one path ({option('paths')}), or look at that domain of the validation set",
        )
    return best
