"""Losses along the descent path, for the objectives that need them; and documents of which nothing else is needed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.features import ColumnsConfig, FeaturesConfig
from direct_anneal.config.objective import BUILT_IN, beside_of
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError, option
from direct_anneal.features import SketchedGradients, UnreachableError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.objectives.damage import DamageLimits
from direct_anneal.objectives.path import PathObjective
from direct_anneal.path import PathConfig, PathLosses, descend, descend_in_part
from direct_anneal.path.rounded import round_weights
from direct_anneal.path.scorer import Elsewhere, Scorer
from direct_anneal.path.walk import put_tensors
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation
from direct_anneal.run.verify_run import LOSSES, is_sketched
from direct_anneal.selection.sketching import require_the_same, there, unreachable
from direct_anneal.selection.stages import Stages

WALKS = "path"  # states and ends of walks, below a run

if TYPE_CHECKING:
    from direct_anneal.config.objective import ObjectiveConfig


def path_objective(config: FeaturesConfig) -> ObjectiveConfig | None:
    """Return the first objective of a run that needs losses along the path; None where none does."""
    if isinstance(config, ColumnsConfig):
        return config.path_objective
    if not isinstance(config, SelectConfig):
        return None
    asked = (config.chosen_objective, *config.other_objectives.values())
    return next((objective for objective in asked if "path" in objective.needs), None)


def walk_of(config: SelectConfig) -> PathConfig | None:
    """Return how the path is walked whose losses a run needs; None where it needs none."""
    objective = path_objective(config)
    return None if objective is None else _walking(objective).path_config(config)


def _walking(objective: ObjectiveConfig) -> PathObjective:
    if isinstance(objective, PathObjective):
        return objective
    return PathObjective(min_order=objective.min_order) if isinstance(objective, DamageLimits) else PathObjective()


def is_path_alone(config: FeaturesConfig) -> bool:
    """True if all that a run needs of its documents is their losses along the path."""
    return isinstance(config, SelectConfig) and config.needs == {"path"}


def losses_along(
    config: FeaturesConfig,
    objective: ObjectiveConfig,
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
        gradients: of the pool, where they were made: the losses where the path starts came with them.

    Raises:
        InputError: as of `descend`.
    """
    options = _walking(objective)
    try:
        with _elsewhere(config, options, checkpoint, tokens) as elsewhere:
            return descend(
                checkpoint,
                validation,
                pool,
                options.path_config(config),
                directory=home_of(run, config),
                work=run.path / WALKS,
                max_length=tokens.max_length,
                stages=stages,
                replace=config.overwrite,
                elsewhere=elsewhere,
                known_start=None if gradients is None else _known_start(config, options, pool, gradients),
            )
    except UnreachableError as error:
        raise unreachable(error) from error


def _start_is_known(config: FeaturesConfig, options: PathObjective) -> bool:
    """True if losses that come with gradients are of the same precision as those at the path's ends."""
    return config.dtype == "float32" and options.scored_weights == "float"


def _known_start(
    config: FeaturesConfig, options: PathObjective, pool: Corpus, gradients: SketchedGradients
) -> NDArray[np.float64] | None:
    """Return losses of the pool that came with gradients, (N,), NaN where there is none.

    None where they are of another precision than those at the path's ends: a drop is a small difference.
    """
    if not _start_is_known(config, options):
        return None
    start = np.full(pool.num_samples, np.nan)
    ids = pool.index["id"].combine_chunks().cast(pa.large_string())
    places = pc.index_in(gradients.samples["id"].combine_chunks().cast(pa.large_string()), value_set=ids)
    start[places.to_numpy()] = gradients.samples["loss"].to_numpy()
    return start


def losses_in_part(
    config: FeaturesConfig,
    objective: ObjectiveConfig,
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
    options = _walking(objective)
    descend_in_part(
        checkpoint,
        validation,
        pool,
        options.path_config(config),
        directory=home_of(run, config),
        work=run.path / WALKS,
        max_length=tokens.max_length,
        stages=stages,
        wanted=wanted,
        knows_start=_start_is_known(config, options),
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
            put_tensors(
                dict(checkpoint.load_model(self.config.device, "float32").named_parameters()).__getitem__, model
            )

        return Scorer(model, return_to_start=return_to_start, max_length=self.max_length, dtype=self.dtype)


def _elsewhere(
    config: FeaturesConfig, options: PathObjective, checkpoint: Checkpoint, tokens: Tokenisation
) -> AbstractContextManager[Elsewhere | None]:
    """Return the workers that compute losses; None where this process does."""
    if config.engine == "local":
        return nullcontext()
    from direct_anneal.distributed import ActorMap

    builder = ScorerBuilder(
        there(config),
        checkpoint.weights_fingerprint(),
        importlib.metadata.version("direct-anneal"),
        tokens.max_length,
        options.path_config(config).dtype,
        is_rounded=options.scored_weights == "int8",
    )
    return ActorMap(builder, address=config.ray_address, workers=config.workers, gpu=config.device != "cpu")


def require_columns(config: SelectConfig, run: RunDir) -> None:
    """See that an earlier run has what the objectives look at.

    Raises:
        InputError: it has not; `solve` computes nothing.
    """
    features = run.origin.path / "features"
    if run.origin.config.features is not None:  # elsewhere: opening them tells
        return
    found = {"path"} if (features / LOSSES).is_dir() else set()
    found |= {"gradients"} if is_sketched(features) else set()
    if lacking := {"path", "gradients"} & config.needs - found:
        what = {"path": "losses along the path", "gradients": "gradients"}
        others = [name for name in BUILT_IN if beside_of(name, {}, config.curvature).needs <= found | {"ngrams"}]
        raise InputError(
            subject=str(run.path),
            must=f"have {' and '.join(what[name] for name in sorted(lacking))} for {option('objective')} "
            f"{config.chosen_objective.name}",
            got=f"but has {' and '.join(what[name] for name in sorted(found)) or 'neither'}",
            do=f"run select there for that, or pass {option('objective')} {' or '.join(others)}",
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
