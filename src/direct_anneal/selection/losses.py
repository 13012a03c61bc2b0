"""Losses along the descent path, for the objectives that need them; and documents of which nothing else is needed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.features import ColumnsConfig, FeaturesConfig
from direct_anneal.config.objective import BUILT_IN, Likeness, beside_of
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features import SketchedGradients, UnreachableError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.matching import MatchingConfig
from direct_anneal.path import PathConfig, PathLosses, columns_at, descend, descend_in_part
from direct_anneal.path.rounded import round_weights
from direct_anneal.path.scorer import Elsewhere, Scorer
from direct_anneal.path.walk import put_tensors
from direct_anneal.run.layout import LOSSES, ROLES, WALKS
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation
from direct_anneal.run.verify_run import is_sketched
from direct_anneal.selection.sketching import on_any_machine, require_the_same, unreachable
from direct_anneal.selection.stages import Stages

if TYPE_CHECKING:
    from direct_anneal.config.objective import ObjectiveConfig


def walk_of(config: FeaturesConfig, told_apart: Likeness | None = None) -> PathConfig | None:
    """Return how losses along the path are made that a run needs, or signs of damage alone; None where it needs
    neither.

    Args:
        told_apart: the pool's likeness to the target, where there is a pool: some objectives need less then.
    """
    asked = _asked(config)
    needs = [each.needs if told_apart is None else each.needs_where(told_apart) for each in asked]
    needing = [objective for objective, own in zip(asked, needs, strict=True) if "path" in own]
    if not needing and not any("signs" in own for own in needs):
        return None
    options = needing[0].walk if needing else {"paths": "none"}
    return PathConfig(
        **options,
        seed=config.seed,
        device=config.device,
        dtype="float32" if config.dtype == "float32" else "bfloat16",
        optimizer=config.optimizer,
        read_order=any(objective.min_order > 0 for objective in asked if isinstance(objective, DamageLimits)),
    )


def as_walked(config: SelectConfig, losses: PathLosses | None) -> SelectConfig:
    """Return the configuration with the walk that the losses were computed with, where it was left to defaults."""
    objective = config.chosen_objective
    if losses is None or not losses.names or not objective.walk:
        return config
    known, defaults = losses.walk, {each.name: each.default for each in fields(objective)}
    walked = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    walk = {name: walked[name] for name, own in objective.walk.items() if own == defaults[name] and name in walked}
    if isinstance(config.objective, str):
        return replace(config, objective_options={**(config.objective_options or {}), **walk})
    return replace(config, objective=replace(objective, **walk))


def _asked(config: FeaturesConfig) -> list[ObjectiveConfig]:
    """Return the objectives that a run is for; of one that is for any, such as need what everyone may."""
    if isinstance(config, ColumnsConfig):
        return [config.path_objective or MatchingConfig()]
    if isinstance(config, SelectConfig):
        return [config.chosen_objective, *config.other_objectives.values()]
    return []


def is_path_alone(config: FeaturesConfig) -> bool:
    """True if all that a run needs of its documents is their losses along the path."""
    return isinstance(config, SelectConfig) and config.needs == {"path"}


def losses_along(
    config: FeaturesConfig,
    walk: PathConfig,
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    tokens: Tokenisation,
    run: RunDir,
    stages: Stages,
    gradients: SketchedGradients | None = None,
) -> PathLosses:
    """Return the pool's losses, computed where they are not there.

    Args:
        walk: as of `walk_of`.
        gradients: of the pool, where they were made: the losses where the path starts came with them.

    Raises:
        InputError: as of `descend`.
    """
    try:
        with _elsewhere(config, walk, checkpoint, tokens) as elsewhere:
            return descend(
                checkpoint,
                validation,
                pool,
                walk,
                directory=home_of(run, config),
                work=run.path / WALKS,
                max_length=tokens.max_length,
                stages=stages,
                replace=config.overwrite,
                elsewhere=elsewhere,
                known_start=None if gradients is None else _known_start(config, walk, pool, gradients),
            )
    except UnreachableError as error:
        raise unreachable(error) from error


def _start_is_known(config: FeaturesConfig, walk: PathConfig) -> bool:
    """True if losses that come with gradients are of the same precision as those at the path's ends."""
    return config.dtype == "float32" and walk.scored_weights == "float"


def _known_start(
    config: FeaturesConfig, walk: PathConfig, pool: Corpus, gradients: SketchedGradients
) -> NDArray[np.float64] | None:
    """Return losses of the pool that came with gradients, (N,), NaN where there is none.

    None where they are of another precision than those at the path's ends: a drop is a small difference.
    """
    if not _start_is_known(config, walk):
        return None
    start = np.full(pool.num_samples, np.nan)
    ids = pool.index["id"].combine_chunks().cast(pa.large_string())
    places = pc.index_in(gradients.samples["id"].combine_chunks().cast(pa.large_string()), value_set=ids)
    start[places.to_numpy()] = gradients.samples["loss"].to_numpy()
    return start


def losses_in_part(
    config: FeaturesConfig,
    walk: PathConfig,
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    tokens: Tokenisation,
    run: RunDir,
    stages: Stages,
    wanted: Callable[[int], bool],
) -> None:
    """Compute those shards of the pool's losses that are wanted, and keep them.

    Raises:
        InputError: as of `descend`.
    """
    descend_in_part(
        checkpoint,
        validation,
        pool,
        walk,
        directory=home_of(run, config),
        work=run.path / WALKS,
        max_length=tokens.max_length,
        stages=stages,
        wanted=wanted,
        knows_start=_start_is_known(config, walk),
        replace=config.overwrite,
    )


@dataclass(frozen=True)
class ScorerBuilder:
    """Builder, on another machine, of what computes losses along the path; the same model and package must be there.

    Attributes:
        config: the run's, with absolute paths.
        weights: the model's fingerprint.
        version: of this package.
        max_length: T, tokens of a window.
        dtype: of forward passes.
        is_rounded: weights are of 8 bits.
    """

    config: FeaturesConfig
    weights: str
    version: str
    max_length: int
    dtype: str
    is_rounded: bool = False

    def __call__(self) -> Scorer:
        checkpoint = require_the_same(self.config, self.weights, self.version)
        model = checkpoint.load_model(self.config.device, "float32")
        if self.is_rounded:
            round_weights(model)

        def return_to_start() -> None:
            start = checkpoint.load_model("cpu", "float32")  # no room is taken for two where the model stands
            put_tensors(dict(start.named_parameters()).__getitem__, model)

        return Scorer(
            model, return_to_start=return_to_start, is_at_start=True, max_length=self.max_length, dtype=self.dtype
        )


def _elsewhere(
    config: FeaturesConfig, walk: PathConfig, checkpoint: Checkpoint, tokens: Tokenisation
) -> AbstractContextManager[Elsewhere | None]:
    """Return the workers that compute losses; None where this process does."""
    if config.engine == "local":
        return nullcontext()
    from direct_anneal.distributed import ActorMap

    builder = ScorerBuilder(
        on_any_machine(config),
        checkpoint.weights_fingerprint(),
        importlib.metadata.version("direct-anneal"),
        tokens.max_length,
        walk.dtype,
        is_rounded=walk.scored_weights == "int8",
    )
    return ActorMap(builder, address=config.ray_address, workers=config.workers, gpu=config.device != "cpu")


def require_columns(config: SelectConfig, run: RunDir, likeness: Likeness) -> None:
    """See that an earlier run has what the objectives look at in a pool of this likeness to the target.

    Raises:
        InputError: it has not; `solve` computes nothing.
    """
    features = run.origin.path / "features"
    if run.origin.config.features is not None:  # elsewhere: opening them tells
        return
    found = set(columns_at(features / LOSSES)) if (features / LOSSES).is_dir() else set()
    found |= {"gradients"} if is_sketched(features) else set()
    if lacking := {"path", "gradients", "signs"} & config.needs_where(likeness) - found:
        what = {"path": "losses along the path", "gradients": "gradients", "signs": "signs of damage"}
        others = [name for name in BUILT_IN if beside_of(name, {}, config.curvature).needs <= found | {"ngrams"}]
        raise InputError(
            subject=str(run.path),
            must=f"have {' and '.join(what[name] for name in sorted(lacking))} for {option('objective')} "
            f"{config.chosen_objective.name}",
            got=f"but has {' and '.join(what[name] for name in sorted(found)) or 'none of them'}",
            do="run select there for that"
            + (f", or pass {option('objective')} {' or '.join(others)}" if others else ""),
        )


def require_of_these(
    losses: PathLosses, walk: PathConfig, corpora: Mapping[str, Corpus], fingerprint: Mapping[str, Any]
) -> None:
    """See that an earlier run's losses are of its documents, and of the model that its features are of.

    Signs of damage do not depend on the validation set, and may have come with a path to another one.

    Args:
        walk: as of `walk_of`.
        fingerprint: what the validation set's features depend on.

    Raises:
        InputError: they are not; a run that was to compute them anew was stopped before.
    """
    here = {**{role: corpora[role].fingerprint for role in ROLES}, "model": fingerprint["model"]}
    there, needed = losses.described["fingerprints"], ("pool", "model") if walk.paths == "none" else here
    if other := [name for name in needed if there.get(name) != here[name]]:
        raise InputError(
            subject="losses of the pool",
            must="be of this run's model and documents",
            got=f"but those there are of another {' and '.join(other)}",
            do=f"run the command that began the run again, with {option('overwrite')}",
        )


def home_of(run: RunDir, config: FeaturesConfig) -> Path | str:
    """Return the directory of a run's losses: with its features."""
    return run.path / "features" / LOSSES if config.features is None else f"{config.features.rstrip('/')}/{LOSSES}"


def usable(
    pool: Corpus, validation: Corpus, gradients: dict[str, SketchedGradients], losses: PathLosses | None
) -> tuple[SketchedGradients, SketchedGradients, PathLosses | None]:
    """Return documents that have all that is needed of them: the pool's, the validation set's, and the pool's losses.

    Args:
        gradients: by role, of those that have them; empty where none are needed.

    Raises:
        InputError: no document of the pool has a loss.
    """
    if losses is None:
        return gradients["pool"], gradients["validation"], None
    if not losses.usable.any():
        raise InputError(
            subject="losses of the pool",
            must="be finite",
            got=f"but all {len(losses):,} are not",
            do="the checkpoint is damaged, or overflows in its precision",
        )
    if not gradients:
        unknown = np.full(validation.num_samples, np.nan)
        return (
            SketchedGradients.absent(pool.index, losses.start, losses.reasons),
            SketchedGradients.absent(validation.index, unknown, [None] * validation.num_samples),
            losses.only(losses.usable),
        )
    there = pc.index_in(gradients["pool"].samples["id"].combine_chunks(), losses.ids.cast(pa.large_string()))
    own = losses.take(there.to_numpy())
    if not own.usable.all():
        reasons = [reason for reason in own.reasons if reason is not None]
        gradients = {**gradients, "pool": gradients["pool"].without(~own.usable, reasons)}
        own = own.only(own.usable)
    return gradients["pool"], gradients["validation"], own
