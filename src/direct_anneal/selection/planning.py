"""`plan`: what a selection will take, before it runs, from some of everything that it will do.

N samples of the pool, M of the validation set, R sketch size, T tokens of a window, D parameters.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from direct_anneal.config.options import require_device
from direct_anneal.config.select import SelectConfig
from direct_anneal.config.signature import takes
from direct_anneal.curvature import Estimate, MatrixFree, SecondMoment, cross_fit, estimate, monte_carlo_sketches
from direct_anneal.data import Part, check_writable, sample, write_selected
from direct_anneal.errors import InputError, option
from direct_anneal.features import NGRAM_SIZE, Documents, FeatureStore, ShardRows, ngrams_of
from direct_anneal.features.batching import found_batch_tokens, sketched
from direct_anneal.features.store import ROWS_PER_SHARD
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import batches, labelled, windows_of
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.lengths import length_switches
from direct_anneal.objectives import Gradients, Inputs, SelectionObjective
from direct_anneal.objectives.path import PathObjective
from direct_anneal.objectives.within import solve_within
from direct_anneal.path import PathLosses
from direct_anneal.progress import Progress, Silent, current_progress
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation, fields_of, sources_of
from direct_anneal.selection.flops import flops, num_windows, window_lengths
from direct_anneal.selection.frontier import trace
from direct_anneal.selection.losses import is_path_alone, path_objective
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.planning_path import PathPlan, planned_path
from direct_anneal.selection.sketching import Sketching
from direct_anneal.selection.spectrum import elbow_rule
from direct_anneal.selection.stages import Stages

NUM_SAMPLED = 1024  # records that are read of each corpus
_TIMED_BATCHES = {"pool": 16, "validation": 6}
_LONGEST = 60.0  # seconds, beyond which no more batches of a corpus are timed
_TIMED_ROWS = 4096  # of the pool, in a problem that is solved for its time
_TIMED_NUMBERS = 1 << 24  # in the matrix of such a problem
_PRODUCTS_PER_PAIR = 3.5  # Lanczos takes 2 to 5
_ROW_BYTES = 64  # of a document's evidence, where no shard of features says
_CURVATURE_ROWS = 4  # validation samples that a product is timed on

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a selection, from nothing; all but exact where everything was read, and estimated elsewhere.

    Attributes:
        documents, tokens, windows: of "pool" and "validation".
        flops: of all sketches, forward and backward: 4 for each token and entry of a matrix that it passes, and the
            attention's. Of a path 2 for each loss and 6 for each token that is trained on.
        disk: bytes below `out`, by part.
        memory: bytes, the process's peak.
        device_memory: bytes, the GPU's peak; 0 without one.
        seconds: by stage, as `select` names them.
        remarks: for the user.
    """

    documents: dict[str, int]
    tokens: dict[str, int]
    windows: dict[str, int]
    flops: float
    disk: dict[str, int]
    memory: int
    device_memory: int
    seconds: dict[str, float]
    remarks: list[str]


@takes(SelectConfig)
def plan(config: SelectConfig) -> Plan:
    """Estimate time, disk and memory of a selection on this machine. Nothing is written below `out`.

    Reads the beginnings of files, loads the model, sketches some batches from the shortest to the longest, and solves
    a problem of the same kind and, up to some thousands of samples, the same size.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    return estimated(config)


def estimated(config: SelectConfig, clock: Clock = time.perf_counter) -> Plan:
    """`plan`, timed by any clock: `time.process_time` for what one thread took."""
    check_machine(config)
    require_device(config.device)  # whatever the engine: the model runs here
    with TemporaryDirectory(prefix="direct-anneal-") as scratch:
        return _Calibration(config, Path(scratch), clock, current_progress()).plan(config.frontier)


@dataclass(frozen=True, kw_only=True)
class _Sketches:
    """The batches sketched for timing.

    Attributes:
        sketcher: of the run.
        batch_tokens: padded tokens of a batch.
        gradients, ngrams: rows of "pool" and "validation", (n, R) and (n, L).
        row_bytes: of a document beside its features.
        peak: resident memory by then, bytes.
    """

    sketcher: GradientSketcher
    batch_tokens: int
    gradients: dict[str, NDArray[np.float64]]
    ngrams: dict[str, NDArray[np.float64]]
    row_bytes: int
    peak: int


class _Calibration:
    def __init__(self, config: SelectConfig, scratch: Path, clock: Clock, progress: Progress) -> None:
        self._config, self._scratch, self._clock, self._progress = config, scratch, clock, progress
        self._seconds: dict[str, float] = {}
        self._remarks: list[str] = []
        self._checkpoint = Checkpoint.choosing(config)
        self._window = self._checkpoint.window(config.max_length)
        if config.retain:
            self._remarks.append("retained text is not counted: it takes what validation documents of its size take")
        if config.engine == "ray":
            self._remarks.append("gradients are timed in this process alone; workers of --engine ray share that time")

    def plan(self, frontier: tuple[float, ...] | None) -> Plan:
        config = self._config
        with self._progress.stage("Reading some documents", "documents") as advance:
            parts = {}
            for role in ("pool", "validation"):
                parts[role] = self._read(role)
                advance(parts[role].corpus.num_samples)
        pool, validation = parts["pool"], parts["validation"]
        if config.fraction is not None:
            share = config.fraction
        elif config.num_samples is not None:
            share = min(1.0, config.num_samples / pool.num_samples)
        else:
            share = min(1.0, (config.num_tokens or 0) / pool.num_tokens)

        path, sketches = self._path(parts), None if is_path_alone(config) else self._sketches(parts)
        with self._progress.stage("Solving a problem like it", "samples") as advance:
            if sketches is not None:
                self._curvature(validation, sketches.sketcher, sketches.batch_tokens)
            self._solve(parts, sketches, path, share, frontier)
            advance(pool.num_samples)
        selected = round(share * pool.num_bytes / (1 - (config.replay or 0.0)))  # with the general text beside it
        row_bytes = _ROW_BYTES if sketches is None else sketches.row_bytes
        disk = {"corpus": sum(self._stored(role, part) for role, part in parts.items()), "features": 0}
        memory, work = _peak(), 0.0
        if path is not None:
            disk["features"] += path.columns * pool.num_samples
            disk["path"] = path.weights
            work += path.flops
            self._remarks.append("walks are counted to their full length; they end where left-out text gains no more")
        if sketches is not None:
            sketcher, samples = sketches.sketcher, pool.num_samples + validation.num_samples
            disk["features"] += 2 * samples * (config.sketch_size + NGRAM_SIZE + row_bytes)
            shard = min(ROWS_PER_SHARD, pool.num_samples)
            # Of a whole shard four matrices in float64 and float32; of N samples the indices, twice, and the evidence.
            held = 4 * 8 * shard * config.sketch_size + 3 * pool.num_samples * row_bytes
            vectors = 8 * (config.eigenpairs or 0) * sum(p.numel() for p in sketcher.parameters.values())
            memory = max(sketches.peak + held, memory) + vectors
            work += sum(flops(part, sketcher.model, self._window) for part in parts.values())
        on_gpu = torch.device(config.device).type == "cuda"
        return Plan(
            documents={role: part.num_samples for role, part in parts.items()},
            tokens={role: part.num_tokens for role, part in parts.items()},
            windows={role: num_windows(part, self._window) for role, part in parts.items()},
            flops=work,
            disk={**disk, "results": selected + pool.num_samples * (row_bytes + 3 * 8)},
            memory=memory,
            device_memory=torch.cuda.max_memory_allocated(config.device) if on_gpu else 0,
            seconds={stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            remarks=self._remarks,
        )

    def _path(self, parts: dict[str, Part]) -> PathPlan | None:
        """Times a few steps and losses, where an objective needs a path."""
        config, objective = self._config, path_objective(self._config)
        if objective is None:
            return None
        options = objective if isinstance(objective, PathObjective) else PathObjective()
        with self._progress.stage("Walking some steps", "tokens"):
            found = planned_path(
                options.path_config(config), self._checkpoint, parts, self._window, self._scratch / "path", self._clock
            )
        self._seconds |= found.seconds
        return found

    def _sketches(self, parts: dict[str, Part]) -> _Sketches:
        """Times gradients and n-grams, and keeps those that it took."""
        config, pool, validation = self._config, parts["pool"], parts["validation"]
        gradients: dict[str, NDArray[np.float64]] = {}
        with self._progress.stage("Sketching some batches", "tokens") as advance:
            with self._timed("Gradients of the validation"):
                sketch = Sketching(
                    replace(config, out=str(self._scratch)),
                    self._checkpoint,
                    RunDir(self._scratch),
                    self._window,
                    Stages(Silent()),
                    [],
                )
                sketch.probe(validation.corpus)
                sketcher = sketch.build()
            longest = pool.corpus.tokens(int(pool.corpus.num_tokens.argmax()))[: self._window]
            size = config.batch_tokens or found_batch_tokens(sketcher, longest)
            for role in ("validation", "pool"):
                gradients[role] = self._sketch(role, parts[role], sketcher, size, advance)
        peak = _peak()
        ngrams = {role: self._ngrams(role, parts[role]) for role in ("validation", "pool")}
        return _Sketches(
            sketcher=sketcher,
            batch_tokens=size,
            gradients=gradients,
            ngrams=ngrams,
            row_bytes=self._write_shard(pool, gradients["pool"]),
            peak=peak,
        )

    @contextmanager
    def _timed(self, stage: str, times: float = 1.0) -> Iterator[None]:
        started = self._clock()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + times * (self._clock() - started)

    def _read(self, role: str) -> Part:
        config, checkpoint = self._config, self._checkpoint
        sources = sources_of(
            role, config, Tokenisation.of(checkpoint, config.max_length), Path(config.out), self._remarks
        )
        if role == "pool":
            check_writable(sources)
            self._remarks += checkpoint.special_tokens.notes
        load = checkpoint.load_tokenizer
        if checkpoint.has_tokenizer:  # its loading does not grow with the documents
            with self._timed(f"Reading the {role}"):
                tokenizer = checkpoint.load_tokenizer()
            load = lambda: tokenizer  # noqa: E731
        started = self._clock()
        part = sample(
            sources,
            num_records=NUM_SAMPLED,
            role=role,
            fields=fields_of(config),
            load_tokenizer=load,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=self._window,
            directory=self._scratch / "corpus" / role,
        )
        stage = f"Reading the {role}"
        seconds = (self._clock() - started) * part.num_samples / part.corpus.num_samples
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        return part

    def _sketch(
        self, role: str, part: Part, sketcher: GradientSketcher, size: int, advance: Callable[[int], object]
    ) -> NDArray[np.float64]:
        """Times batches as select makes them, from the longest windows to the shortest; returns their rows, (n, R)."""
        rows = range(min(ROWS_PER_SHARD, part.corpus.num_samples))
        documents = Documents.of(part.corpus, rows)
        cut = windows_of(documents.tokens, max_length=self._window, num_prompt=documents.num_prompt)
        planned = list(batches(cut, size, length_switches(sketcher.model)))
        picked = np.unique(np.linspace(0, len(planned) - 1, _TIMED_BATCHES[role]).astype(int))
        sums = np.zeros((len(rows), sketcher.projection.sketch_size))
        sketched(sketcher, planned[0])  # a first time is slower
        lengths, seconds, began = [], [], time.perf_counter()
        for index in picked.tolist():
            batch = planned[index]
            started = self._clock()
            sketches = sketched(sketcher, batch)
            weights = sketches.num_tokens.cpu().numpy().astype(np.float64)
            owners = [window.document for window in batch]
            np.add.at(sums, owners, sketches.values.cpu().numpy().astype(np.float64) * weights[:, None])
            seconds.append((self._clock() - started) / len(batch))
            lengths.append(sum(len(window.tokens) for window in batch) / len(batch))
            advance(sum(len(window.tokens) for window in batch))
            if time.perf_counter() - began > _LONGEST:
                break
        # A window's time by its length t: a + b t + c t², none of them negative.
        scale = self._window
        coefficients = nnls(_powers(np.array(lengths) / scale), np.array(seconds))[0]
        windows, weights = window_lengths(part, self._window)
        stage = f"Gradients of the {role}"
        total = float(weights @ (_powers(windows / scale) @ coefficients))
        self._seconds[stage] = self._seconds.get(stage, 0.0) + total
        sums = sums[np.isfinite(sums).all(axis=1) & sums.any(axis=1)]
        if not len(sums):
            raise InputError(
                f"gradients of the {role} must be finite, but all of some {len(picked)} batches are NaN, infinite or "
                f"zero: the checkpoint is damaged, or overflows in its precision (try {option('dtype')} float32)"
            )
        return sums

    def _ngrams(self, role: str, part: Part) -> NDArray[np.float64]:
        """Times the n-grams of the documents at hand; returns their rows, (n, L)."""
        with self._timed(f"N-grams of the {role}", part.num_tokens / int(part.corpus.num_tokens.sum())):
            store = ngrams_of(self._scratch / "ngrams" / role, part.corpus)
        return np.concatenate(store.features()).astype(np.float64)

    def _write_shard(self, part: Part, rows: NDArray[np.float64]) -> int:
        """Times the writing of a shard, and returns the bytes of a row beside its features."""
        count = min(ROWS_PER_SHARD, part.corpus.num_samples)
        content = ShardRows(
            features=_alike(rows, count).astype(np.float16),
            samples=part.corpus.index.slice(0, count),
            losses=np.random.default_rng(0).random(count),
            norms=np.random.default_rng(1).random(count),
        )
        directory = self._scratch / "features"
        store = FeatureStore(directory, num_samples=count, sketch_size=rows.shape[1], fingerprint={"of": "a plan"})
        with self._timed("Gradients of the pool", part.num_samples / count):
            store.write(0, content)
        return int((directory / "features-00000.parquet").stat().st_size / count) + 1

    def _curvature(self, part: Part, sketcher: GradientSketcher, size: int) -> None:
        """Times what asks the model again."""
        config, corpus, stage = self._config, part.corpus, "Spectrum of the validation set"
        if config.curvature == "empirical-fisher":
            return
        rows = range(min(_CURVATURE_ROWS, corpus.num_samples))
        documents = [corpus.tokens(row) for row in rows]
        labels = [labelled(tokens, int(corpus.num_prompt[row])) for row, tokens in zip(rows, documents, strict=True)]
        times = part.num_tokens / sum(map(len, documents))
        if config.curvature == "mc-fisher":
            with self._timed(stage, times):
                names = [str(row) for row in rows]
                monte_carlo_sketches(
                    sketcher,
                    documents,
                    names,
                    labels=labels,
                    max_length=self._window,
                    batch_tokens=size,
                    seed=config.seed,
                )
            return
        assert config.eigenpairs is not None
        lanczos = MatrixFree(
            sketcher,
            documents,
            config.curvature,
            config.eigenpairs,
            labels=labels,
            max_length=self._window,
            batch_tokens=size,
        )
        operator = lanczos.operator(np.arange(len(documents)))
        vector = np.random.default_rng(0).standard_normal(lanczos.num_parameters)
        with self._timed(stage, times * 2 * _PRODUCTS_PER_PAIR * config.eigenpairs):  # of all, and of both halves
            operator @ vector
        self._remarks.append(
            f"{config.curvature}: how many products Lanczos takes hangs on the model, so that the time of its spectrum "
            "is known to a factor of 1.8 at best"
        )

    def _solve(
        self,
        parts: dict[str, Part],
        sketches: _Sketches | None,
        path: PathPlan | None,
        share: float,
        frontier: tuple[float, ...] | None,
    ) -> None:
        """Times spectrum and solution on rows like those that were sketched, and the writing of what is chosen."""
        pool = parts["pool"]
        most = _TIMED_ROWS
        if sketches is not None:
            most = max(16, min(most, _TIMED_NUMBERS // sketches.gradients["pool"].shape[1]))
        n, m = (min(most, max(4, parts[role].num_samples)) for role in ("pool", "validation"))
        config = replace(
            self._config,
            num_samples=None,
            num_tokens=None,
            fraction=share,
            num_stiff=None,
            bands=None,
            floors={},
            ceilings={},
            force_in=None,
            force_out=None,
        )
        lengths = np.resize(pool.corpus.num_tokens, n)
        table = pa.table({"id": [f"{i:07d}" for i in range(n)], "domain": ["any"] * n, "num_tokens": lengths})
        loaders: dict[str, Callable[[str], Any]] = {"samples": lambda _: table}
        load_estimate: Callable[[], Estimate] | None = None
        if path is not None:
            loaders["path"] = {"pool": _losses_alike(path, table)}.__getitem__
        if sketches is not None:
            z = _alike(sketches.gradients["validation"], m)
            with self._timed("Spectrum of the validation set", parts["validation"].num_samples / m):
                spectra = estimate(SecondMoment(z), m).split(elbow_rule(self._config))
                if spectra.halves is not None:
                    cross_fit(z, spectra.halves)
            load_estimate = partial(_itself, spectra)
            units, words = (
                _alike(rows["pool"], n).astype(np.float16) for rows in (sketches.gradients, sketches.ngrams)
            )
            rows = {"pool": Gradients([units], np.ones(n)), "validation": Gradients([z], np.ones(m), z)}
            loaders["gradients"] = rows.__getitem__
            loaders["ngrams"] = {
                "pool": [words],
                "validation": [_alike(sketches.ngrams["validation"], m)],
            }.__getitem__
        solved = None
        with self._timed("Choosing", pool.num_samples / n):
            num_selected, token_budget = config.size_of(lengths)
            inputs = Inputs(
                num_tokens=lengths,
                num_selected=num_selected,
                token_budget=token_budget,
                constraints={"tie_order": np.arange(n)},
                loaders=loaders,
                estimate=load_estimate,
                summed=config.reduction == "sum",
            )
            for objective in (config.chosen_objective, *config.other_objectives.values()):
                assert isinstance(objective, SelectionObjective)
                try:
                    found = objective, solve_within(objective, objective.build(inputs), relax=True)[0]
                except InputError:
                    continue
                solved = solved or found
        if frontier is not None and solved is not None:
            with self._timed("Frontier", pool.num_samples / n):
                trace(*solved, frontier, table)
        corpus = pool.corpus
        chosen = np.zeros(corpus.num_samples, dtype=bool)
        chosen[:: max(1, round(1 / share))] = True
        with self._timed("Writing", pool.num_samples / corpus.num_samples):
            write_selected(corpus, chosen, self._scratch / "selected")

    def _stored(self, role: str, part: Part) -> int:
        """Bytes of a corpus's tokens and index."""
        files = [path for path in (self._scratch / "corpus" / role).iterdir() if path.is_file()]
        taken = sum(path.stat().st_size for path in files)
        tokens = sum(path.stat().st_size for path in files if path.suffix == ".tokens")
        rows = (taken - tokens) / part.corpus.num_samples
        return round(tokens / int(part.corpus.num_tokens.sum()) * part.num_tokens + rows * part.num_samples)


def _itself(spectra: Estimate) -> Estimate:
    return spectra


def _losses_alike(path: PathPlan, samples: pa.Table) -> PathLosses:
    """Losses of documents that no sign of damage leaves out, at random."""
    n, rng = samples.num_rows, np.random.default_rng(0)
    return PathLosses(
        ids=samples["id"].combine_chunks(),
        num_tokens=samples["num_tokens"].to_numpy().astype(np.float64),
        start=1 + rng.random(n),
        ends=rng.random((n, len(path.names))),
        names=path.names,
        repeated=np.zeros(n),
        common=np.zeros(n),
        order=np.ones(n),
    )


def _alike(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Unit rows that are like these and no two the same, (count, R): sums of two of them at random."""
    rng = np.random.default_rng(0)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = rng.integers(len(units), size=(2, count))
    mixed: NDArray[np.float64] = units[first] + rng.random((count, 1)) * units[second]
    lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
    mixed /= np.where(lengths > 0, lengths, 1.0)
    return mixed


def _powers(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(lengths), lengths, lengths**2], axis=1)


def _peak() -> int:
    """The process's largest resident memory so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
