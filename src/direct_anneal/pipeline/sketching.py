"""Corpora into gradients, by way of the store."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from direct_anneal.checkpoint import Checkpoint
from direct_anneal.corpus import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore, SketchedGradients, extract
from direct_anneal.gradients import (
    FACTOR_SIZE,
    SKETCH_VERSION,
    GradientSketcher,
    SlowPathWarning,
    adam_scales,
)
from direct_anneal.pipeline import manifest
from direct_anneal.pipeline.config import SelectConfig
from direct_anneal.pipeline.outputs import write_coverage
from direct_anneal.pipeline.stages import Stages

_PROBE_TOKENS = 128


class Sketching:
    """Turns each corpus of a run into gradients; one sketcher serves all, and is built only where something is missing.

    Args:
        config: the run's.
        checkpoint: whose gradients.
        max_length: T, tokens of a window.
        stages: where progress is shown.
        found: where remarks for the user are added.

    Attributes:
        weights: fingerprint of the model.
        optimizer: fingerprint of the optimiser's state, where gradients are taken in its geometry.
    """

    def __init__(
        self, config: SelectConfig, checkpoint: Checkpoint, max_length: int, stages: Stages, found: list[str]
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._max_length = max_length
        self._stages = stages
        self._found = found
        self._sketcher: GradientSketcher | None = None
        self._probe: list[Tensor] = []
        self.weights = checkpoint.weights_fingerprint()
        self.optimizer = None if config.optimizer is None else _digest(config.optimizer)

    def __call__(self, role: str, corpus: Corpus) -> SketchedGradients:
        """The gradients of one corpus, computed where the store lacks them.

        Raises:
            InputError: not one gradient is usable, or the optimiser's state does not fit the model.
        """
        config = self._config
        store = self._store(role, corpus)
        self.probe(corpus)
        tokens, documents = int(corpus.num_tokens.sum()), ("documents", corpus.num_samples)
        with (
            self._stages.stage(f"Gradients of the {role}", "tokens", tokens, documents) as advance,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", SlowPathWarning)
            extract(
                corpus,
                store,
                self.build,
                max_length=self._max_length,
                batch_tokens=config.batch_tokens,
                advance=advance,
            )
        if slow := [str(one.message) for one in caught if issubclass(one.category, SlowPathWarning)]:
            store.remember(slow)
        if self._sketcher is not None:
            write_coverage(Path(config.out), manifest.coverage_entry(self._sketcher.describe()))
        self._found += [remark for remark in store.remarks() if remark not in self._found]
        gradients = SketchedGradients.load(store, corpus.index)
        store.list_quarantined(gradients.quarantined.select(manifest.QUARANTINE_COLUMNS))
        if not len(gradients):
            raise InputError(
                f"gradients of the {role} must be finite, but all {corpus.num_samples} are NaN or infinite: the "
                "checkpoint is damaged, or overflows in its precision (try --dtype float32)"
            )
        return gradients

    def probe(self, corpus: Corpus) -> None:
        """Let the sketcher be checked on the beginnings of this corpus, unless another one came first."""
        if not self._probe:
            rows = range(min(2, corpus.num_samples))
            self._probe = [torch.from_numpy(corpus.tokens(row)[:_PROBE_TOKENS]) for row in rows]

    def _store(self, role: str, corpus: Corpus) -> FeatureStore:
        config = self._config
        return FeatureStore(
            Path(config.out) / "features" / role,
            num_samples=corpus.num_samples,
            sketch_size=config.sketch_size,
            fingerprint=self.fingerprint(corpus),
            replace=config.overwrite,
        )

    def fingerprint(self, corpus: Corpus) -> dict[str, Any]:
        """What the features of a corpus depend on."""
        config = self._config
        return {
            "model": self.weights,
            "optimizer": self.optimizer,
            "data": corpus.fingerprint,
            "max_length": self._max_length,
            "parameters": None if config.parameters is None else list(config.parameters),
            "reduction": config.reduction,
            "projection": config.projection,
            "factor_size": FACTOR_SIZE,
            "sketch_version": SKETCH_VERSION,
            "seed": config.seed,
            "dtype": config.dtype,
        }

    def build(self) -> GradientSketcher:
        """The run's sketcher, checked against the model on its first use."""
        if self._sketcher is None:
            config = self._config
            model = self._checkpoint.load_model(config.device, config.dtype)
            try:
                self._sketcher = GradientSketcher(
                    model,
                    config.sketch_size,
                    config.projection,
                    config.seed,
                    reduction=config.reduction,
                    parameters=config.parameters,
                    scales=None if config.optimizer is None else adam_scales(Path(config.optimizer), model),
                )
            except ValueError as error:
                raise InputError(f"--parameters and --optimizer must fit the model, but {error}") from error
            # On the same samples wherever an earlier run had stopped, so that what is said of coverage is the same.
            ids = pad_sequence(self._probe, batch_first=True, padding_value=-1)
            self._sketcher.check(ids.clamp(min=0), ids >= 0)
        return self._sketcher


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"--optimizer must be a file that torch.save wrote, such as optimizer.pt, but {path}: {error.strerror}"
        ) from error
