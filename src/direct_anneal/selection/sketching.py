"""Corpora into gradients, by way of the store."""

from __future__ import annotations

import importlib.metadata
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.names import corpus_name
from direct_anneal.data import Corpus
from direct_anneal.distributed import Group
from direct_anneal.errors import InputError, option
from direct_anneal.features import (
    Engine,
    FeatureStore,
    Local,
    SketchedGradients,
    UnreachableError,
    extract,
    ngram_store,
    ngrams_of,
)
from direct_anneal.gradients import (
    FACTOR_SIZE,
    SKETCH_VERSION,
    GradientSketcher,
    SlowPathWarning,
    adam_scales,
    optimizer_fingerprint,
    spread,
)
from direct_anneal.io.torchrun import is_launched
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.progress import Work
from direct_anneal.run import manifest
from direct_anneal.run.layout import RETAIN
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection.stages import Stages

if TYPE_CHECKING:
    from direct_anneal.distributed import RayEngine

_PROBE_TOKENS = 128

Configured = TypeVar("Configured", bound=FeaturesConfig)


@dataclass(frozen=True)
class SketcherBuilder:
    """Builder of a run's sketcher, which it checks against the model.

    Attributes:
        config: the run's.
        probe: beginnings of documents, shape (T,) each, to check it on. The same wherever an earlier run had stopped,
            so that what is said of coverage is the same.
        is_spread: over the processes of torchrun.
    """

    config: FeaturesConfig
    probe: tuple[NDArray[np.int64], ...]
    is_spread: bool = False

    def __call__(self) -> GradientSketcher:
        config = self.config
        checkpoint = Checkpoint.choosing(config)
        window = checkpoint.window(config.max_length)
        model = checkpoint.load_model("cpu" if self.is_spread else config.device, config.dtype, window=window)
        if self.is_spread:
            model = spread(model, torch.device(config.device))
        try:
            sketcher = GradientSketcher(
                model,
                config.sketch_size,
                config.projection,
                config.seed,
                reduction=config.reduction,
                parameters=config.parameters,
                scales=None if config.optimizer is None else adam_scales(Path(config.optimizer), model),
            )
        except ValueError as error:
            raise InputError(
                subject=f"{option('parameters')} and {option('optimizer')}", must="fit the model", got=f"but {error}"
            ) from error
        ids = pad_sequence([torch.from_numpy(tokens) for tokens in self.probe], batch_first=True, padding_value=-1)
        sketcher.check(ids.clamp(min=0), ids >= 0)
        return sketcher


@dataclass(frozen=True)
class ElsewhereBuilder:
    """The same on another machine, where the same model and the same of us must be.

    Attributes:
        builder: of the sketcher; with absolute paths.
        weights: the model's fingerprint.
        version: of this package.
    """

    builder: SketcherBuilder
    weights: str
    version: str

    def __call__(self) -> GradientSketcher:
        require_the_same(self.builder.config, self.weights, self.version)
        return self.builder()


def require_the_same(config: FeaturesConfig, weights: str, version: str) -> Checkpoint:
    """See that the model that chooses, and this package, are here what they are where the run began.

    Args:
        config: the run's, with absolute paths.
        weights: the model's fingerprint there.
        version: of this package there.

    Raises:
        InputError: one is another.
    """
    checkpoint = Checkpoint.choosing(config)
    for what, wanted, found in (
        (config.chooser or config.model, weights, checkpoint.weights_fingerprint()),
        ("direct-anneal", version, importlib.metadata.version("direct-anneal")),
    ):
        if found != wanted:
            raise InputError(
                subject=what,
                must="be the same on every machine",
                got=f"but is {found:.16} on {socket.gethostname()} and {wanted:.16} where the run began",
                do="copy it there",
            )
    return checkpoint


class Sketching:
    """Turns each corpus of a run into gradients; one sketcher serves all, and is built only where something is missing.

    A context: at its end, workers on other machines are let go.

    Args:
        config: the run's.
        checkpoint: whose gradients.
        run: where features are kept; it is held.
        max_length: T, tokens of a window.
        stages: where progress is shown.
        found: where remarks for the user are added.

    Attributes:
        weights: fingerprint of the model.
        optimizer: fingerprint of the optimiser's state, where gradients are taken in its geometry.
    """

    def __init__(
        self,
        config: FeaturesConfig,
        checkpoint: Checkpoint,
        run: RunDir,
        max_length: int,
        stages: Stages,
        found: list[str],
    ) -> None:
        self._config = config
        self._run = run
        self._max_length = max_length
        self._stages = stages
        self._found = found
        self._probe: tuple[NDArray[np.int64], ...] = ()
        self._local: Local | Group = Local(lambda: SketcherBuilder(config, self._probe)())
        self._cluster: RayEngine | None = None
        self.weights = checkpoint.weights_fingerprint()
        self.optimizer = optimizer_fingerprint(config.optimizer)

    def __enter__(self) -> Sketching:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def __call__(self, role: str, corpus: Corpus) -> SketchedGradients:
        """Return the gradients of one corpus, computed where the store lacks them.

        Raises:
            InputError: not one gradient is usable, or the optimiser's state does not fit the model.
        """
        self.probe(corpus)
        try:
            store = self._extracted(role, corpus)
        except UnreachableError as error:
            raise unreachable(error) from error
        words = None if role == RETAIN else self._ngrams(role, corpus, store.header.rows_per_shard)
        gradients = SketchedGradients.load(store, corpus.index, words)
        store.list_quarantined(gradients.quarantined.select(manifest.QUARANTINE_COLUMNS))
        if not len(gradients):
            raise InputError(
                subject=f"gradients of the {corpus_name(role)}",
                must="be finite",
                got=f"but all {corpus.num_samples} are NaN or infinite",
                do=f"the checkpoint is damaged, or overflows in its precision (try {option('dtype')} float32)",
            )
        return gradients

    def complete_coverage(self) -> None:
        """Make what the run says of coverage anew where that is lost or damaged, which takes the model."""
        try:
            if self._run.coverage() is not None:
                return
        except InputError:
            pass  # damaged
        self._run.write_coverage(manifest.coverage_entry(self._local.sketcher.describe()))

    def part(self, role: str, corpus: Corpus, number: int, count: int) -> int:
        """Compute the shards `number`, `number` + `count`, ... of one corpus alone; returns how many these are.

        Raises:
            InputError: as a call.
        """
        self.probe(corpus)
        store = self._extracted(role, corpus, lambda shard: shard % count == number)
        if role != RETAIN:
            self._ngrams(role, corpus, store.header.rows_per_shard, lambda shard: shard % count == number)
        return len(range(number, store.num_shards, count))

    def probe(self, corpus: Corpus) -> None:
        """Let the sketcher be checked on the beginnings of this corpus, unless another one came first."""
        if not self._probe:
            rows = range(min(2, corpus.num_samples))
            self._probe = tuple(corpus.tokens(row)[:_PROBE_TOKENS] for row in rows)

    def _extracted(self, role: str, corpus: Corpus, wanted: Callable[[int], bool] = lambda _: True) -> FeatureStore:
        config, engine = self._config, self._engine()
        store = self._store(role, corpus)
        # With features at a URL, workers elsewhere need not see this directory: then n-grams are made here, afterwards.
        beside = role != RETAIN and config.features is None
        words = (
            ngram_store(
                self._home(f"{role}-ngrams"),
                corpus,
                rows_per_shard=store.header.rows_per_shard,
                replace=config.overwrite,
            )
            if beside
            else None
        )
        tokens, documents = int(corpus.num_tokens.sum()), ("documents", corpus.num_samples)
        work = Work(role=role, unit="tokens", gradients=1)
        with (
            self._stages.stage(f"Gradients of the {corpus_name(role)}", "tokens", tokens, documents, work) as advance,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", SlowPathWarning)
            redone = extract(
                corpus,
                store,
                engine,
                max_length=self._max_length,
                batch_tokens=config.batch_tokens,
                advance=advance,
                wanted=wanted,
                words=words,
            )
        if redone:
            self._found.append(
                f"{role}: workers or their machines were lost, and {len(redone)} of {store.num_shards} shards begun "
                f"again: {', '.join(map(str, redone[:10]))}{', ...' if len(redone) > 10 else ''}"
            )
        if slow := [str(one.message) for one in caught if issubclass(one.category, SlowPathWarning)]:
            store.remember(slow)
        self._found += [remark for remark in store.remarks() if remark not in self._found]
        if config.features is not None:
            work = Work(role=role, unit="documents")
            with self._stages.stage(
                f"Fetching the features of the {corpus_name(role)}", "shards", store.num_shards, work=work
            ) as advance:
                store = store.fetched(self._home(role), replace=config.overwrite, advance=advance)
        if (coverage := engine.coverage()) is not None:
            self._run.write_coverage(manifest.coverage_entry(coverage))
        return store

    def _ngrams(
        self, role: str, corpus: Corpus, rows_per_shard: int, wanted: Callable[[int], bool] = lambda _: True
    ) -> FeatureStore:
        work = Work(role=role, unit="tokens")
        with self._stages.stage(
            f"N-grams of the {corpus_name(role)}", "documents", corpus.num_samples, work=work
        ) as advance:
            home = self._home(f"{role}-ngrams")
            return ngrams_of(
                home,
                corpus,
                rows_per_shard=rows_per_shard,
                replace=self._config.overwrite,
                advance=advance,
                wanted=wanted,
            )

    def build(self) -> GradientSketcher:
        """Return the run's sketcher, here."""
        return self._local.sketcher

    def _home(self, role: str) -> Path:
        return Path(self._config.out) / "features" / role

    def _store(self, role: str, corpus: Corpus) -> FeatureStore:
        config = self._config
        return FeatureStore(
            self._home(role) if config.features is None else f"{config.features.rstrip('/')}/{role}",
            num_samples=corpus.num_samples,
            sketch_size=config.sketch_size,
            fingerprint=self.fingerprint(corpus),
            replace=config.overwrite,
        )

    def _engine(self) -> Engine:
        if self._config.engine == "local":
            if is_launched() and not isinstance(self._local, Group):
                builder = SketcherBuilder(self._config, self._probe, is_spread=True)
                self._local = Group(builder, on_gpu=self._config.device != "cpu")
            return self._local
        if self._cluster is None:
            from direct_anneal.distributed import RayEngine

            config = self._config
            version = importlib.metadata.version("direct-anneal")
            self._cluster = RayEngine(
                ElsewhereBuilder(SketcherBuilder(on_any_machine(config), self._probe), self.weights, version),
                address=config.ray_address,
                workers=config.workers,
                gpu=config.device != "cpu",
            )
        return self._cluster

    def fingerprint(self, corpus: Corpus) -> dict[str, Any]:
        """Return the inputs that the features of a corpus depend on."""
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


def on_any_machine(config: Configured) -> Configured:
    """Return the same configuration with absolute paths, as another machine needs it."""
    chooser, optimizer = (None if path is None else _absolute(path) for path in (config.chooser, config.optimizer))
    return replace(config, model=_absolute(config.model), chooser=chooser, optimizer=optimizer)


def unreachable(error: UnreachableError) -> InputError:
    """Return the error of a place for features that cannot be reached, in the user's words."""
    return InputError(
        field="features",
        must="be a place that can be read and written",
        got=f"but {error}",
        do="mend it, and run the same command again to go on",
    )


def _absolute(name: str) -> str:
    """Return the path of what is there; a hub's name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
