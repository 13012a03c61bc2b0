"""Losses along the descent path, for the objectives that need them; and documents of which nothing else is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.objectives.path import PathObjective
from direct_anneal.path import PathLosses, descend
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation
from direct_anneal.run.verify_run import LOSSES
from direct_anneal.selection.stages import Stages

if TYPE_CHECKING:
    from direct_anneal.config.objective import ObjectiveConfig


def path_objective(config: FeaturesConfig) -> ObjectiveConfig | None:
    """The first objective of a run that needs losses along the path; None where none does."""
    if not isinstance(config, SelectConfig):
        return None
    asked = (config.chosen_objective, *config.other_objectives.values())
    return next((objective for objective in asked if "path" in objective.needs), None)


def is_path_alone(config: FeaturesConfig) -> bool:
    """True if all that a run needs of its documents is their losses along the path."""
    return isinstance(config, SelectConfig) and config.needs == {"path"}


def losses_along(
    config: SelectConfig,
    objective: ObjectiveConfig,
    checkpoint: Checkpoint,
    validation: Corpus,
    pool: Corpus,
    tokens: Tokenisation,
    run: RunDir,
    stages: Stages,
) -> PathLosses:
    """The pool's losses, computed where they are not there.

    Raises:
        InputError: as of `descend`.
    """
    options = objective if isinstance(objective, PathObjective) else PathObjective()
    return descend(
        checkpoint,
        validation,
        pool,
        options.path_config(config),
        directory=home_of(run, config),
        work=run.path / "path",
        max_length=tokens.max_length,
        stages=stages,
        replace=config.overwrite,
    )


def home_of(run: RunDir, config: FeaturesConfig) -> Path | str:
    """Directory of a run's losses: with its features."""
    return run.path / "features" / LOSSES if config.features is None else f"{config.features.rstrip('/')}/{LOSSES}"


def usable(
    pool: Corpus, validation: Corpus, gradients: dict[str, SketchedGradients], losses: PathLosses | None
) -> tuple[SketchedGradients, SketchedGradients, PathLosses | None]:
    """Documents that have all that is needed of them: the pool's, the validation set's, and the pool's losses.

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
