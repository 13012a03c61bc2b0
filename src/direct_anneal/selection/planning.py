"""`plan`: the stages of `select` run on a sample of the documents, and what each took scaled to all of them.

N samples of the pool, R sketch size.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from direct_anneal.config.choice import CONSTRAINTS, SIZE
from direct_anneal.config.option import declared
from direct_anneal.config.options import require_device
from direct_anneal.config.select import SelectConfig
from direct_anneal.config.shared import EngineConfig
from direct_anneal.config.signature import takes
from direct_anneal.data import Corpus, Part, Source, sample
from direct_anneal.data.sources import FETCHED
from direct_anneal.errors import InputError
from direct_anneal.features.store import ROWS_PER_SHARD
from direct_anneal.io.atomic import remove_directory
from direct_anneal.io.redaction import redacted
from direct_anneal.progress import Advance, Silent, Work, current_progress
from direct_anneal.run.layout import EVIDENCE
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection.flops import flops, num_windows
from direct_anneal.selection.known import Known
from direct_anneal.selection.machine import check_machine
from direct_anneal.selection.pipeline import Documents, choose, computed, reading
from direct_anneal.selection.spectrum import curvature_of
from direct_anneal.selection.stages import Clock, Stages
from direct_anneal.selection.synthetic_rows import synthetic_rows

NUM_SAMPLED = 1024  # records that are read of each corpus
_FIRST_TOKENS = 4096  # of each corpus, that the model sees at first
_GROWTH = 4  # from one trial to the next
_ENOUGH = 2.0  # seconds at work in a trial, after which none follows
_FEWEST = 4  # documents of a trial
WHILE_WALKING = "a walk's state, while it lasts"
_CURVATURE_ROWS = 4  # validation samples of a curvature that takes the model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a selection, from nothing; all but exact where everything was read, and estimated elsewhere.

    Attributes:
        documents, tokens, windows: of "pool" and "validation", and of "retain" where text is retained.
        flops: of all sketches, forward and backward: 4 for each token and entry of a matrix that it passes, and the
            attention's. Of a path 2 for each loss and 6 for each token that is trained on.
        disk: bytes below `out`, by part; `WHILE_WALKING` is gone at the end.
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

    Runs `select` on a sample, in a directory of its own: reads the beginnings of files, takes some of their documents
    through every stage, more of them as long as that takes no time, and chooses among as many as were read.

    Raises:
        InputError: something given cannot be used; says what to do.
    """
    return estimated(config)


def estimated(config: SelectConfig, clock: Clock = time.perf_counter) -> Plan:
    """Run `plan`, timed by any clock: `time.process_time` for what one thread took."""
    check_machine(config)
    require_device(config.device)  # whatever the engine: the model runs here
    with TemporaryDirectory(prefix="direct-anneal-") as scratch:
        return _Rehearsal(config, Path(scratch), clock).plan()


class _Rehearsal:
    """A selection on a sample.

    Args:
        config: as asked for.
        scratch: a directory for everything that is written.
        clock: seconds.
    """

    def __init__(self, config: SelectConfig, scratch: Path, clock: Clock) -> None:
        self._config, self._scratch, self._clock = config, scratch, clock
        self._parts: dict[str, Part] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._works: list[Work] = []
        self._remarks: list[str] = []
        if config.engine == "ray":
            self._remarks.append("gradients are timed in this process alone; workers of --engine ray share that time")
        if config.features is not None:
            self._remarks.append(f"the shards' way to {redacted(config.features)} and back is not counted")

    def plan(self) -> Plan:
        shown, trial = current_progress(), _loosened(self._config)
        with shown.stage("Reading some documents", "documents") as advance:
            documents = self._read(trial, advance)
            if trial.needs_where(documents.likeness) != trial.needs:
                self._remarks.append(
                    "by these documents the pool has text of the target's own kind, so that no path is counted"
                )
        with shown.stage("Trying every stage on some of them", "tokens") as advance:
            known, home = self._computed(trial, documents, advance)
            peak = _peak()
            if known.has_gradients and not self._config.is_empirical:
                self._curvature(trial, known)
        with shown.stage("Choosing among documents like them", "documents") as advance:
            results = self._chosen(trial, documents, known)
            advance(documents.corpora["pool"].num_samples)
        return self._plan(documents, known, home, peak, results)

    def _plan(self, documents: Documents, known: Known, home: Path, peak: int, results: float) -> Plan:
        """Add up what was measured.

        Args:
            home: where the features of the sample are.
            peak: resident memory by then, bytes.
            results: bytes of what `select` writes at its end.
        """
        parts, window, pool = self._parts, documents.tokens.max_length, self._parts["pool"]
        held = 3 * pool.num_samples * known.pool.samples.nbytes / max(1, len(known.pool))  # index, twice, and evidence
        if known.has_gradients:  # of a whole shard four matrices in float64 and float32
            held += 4 * 8 * min(ROWS_PER_SHARD, pool.num_samples) * self._config.sketch_size
        on_gpu = torch.device(self._config.device).type == "cuda"
        return Plan(
            documents={role: part.num_samples for role, part in parts.items()},
            tokens={role: part.num_tokens for role, part in parts.items()},
            windows={role: num_windows(part, window) for role, part in parts.items()},
            flops=self._flops(documents),
            disk={
                "corpus": sum(_stored(documents.corpora[role].directory, part) for role, part in parts.items()),
                **self._left_at(home, known),
                "results": round(results),
            },
            memory=max(peak + round(held), _peak()),
            device_memory=torch.cuda.max_memory_allocated(self._config.device) if on_gpu else 0,
            seconds={stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            remarks=self._remarks,
        )

    def _read(self, trial: SelectConfig, advance: Advance) -> Documents:
        """Return some documents of each corpus."""

        def read(sources: Sequence[Source], **options: Any) -> Corpus:
            given = {name: value for name, value in options.items() if name not in ("workers", "elsewhere")}
            part = self._parts[options["role"]] = sample(sources, num_records=NUM_SAMPLED, **given)
            advance(part.corpus.num_samples)
            return part.corpus

        stages, cache = Stages(Silent(), self._clock), self._scratch / FETCHED
        config = replace(trial, out=str(self._scratch / "read"))
        with reading(config, stages, self._remarks, home=Path(self._config.out), cache=cache, read=read) as documents:
            self._add(stages, documents.corpora)
            return documents

    def _computed(self, trial: SelectConfig, documents: Documents, advance: Advance) -> tuple[Known, Path]:
        """Take some of the documents through every stage up to the choice, and more of them while that is quick."""
        num_tokens = _FIRST_TOKENS
        while True:
            home = self._scratch / f"computed-{num_tokens}"
            corpora = {role: _some_of(corpus, num_tokens) for role, corpus in documents.corpora.items()}
            is_all = all(corpora[role] is corpus for role, corpus in documents.corpora.items())
            config, stages = replace(trial, out=str(home)), Stages(Silent(), self._clock)
            try:
                with RunDir.create(home, config, documents.tokens) as run:
                    known = computed(config, replace(documents, corpora=corpora, run=run), stages, [])
            except InputError:  # true of all documents, or of a few alone?
                if is_all:
                    raise
            else:
                advance(sum(int(corpus.num_tokens.sum()) for corpus in corpora.values()))
                if is_all or sum(timing.seconds - timing.start_up for timing in stages.timings.values()) > _ENOUGH:
                    self._add(stages, corpora)
                    return known, home
            remove_directory(home)
            num_tokens *= _GROWTH

    def _curvature(self, trial: SelectConfig, known: Known) -> None:
        """Take the spectrum of a few documents; it is kept, so that the choice finds it."""
        others = np.arange(len(known.validation)) >= _CURVATURE_ROWS
        few = known.validation.without(others, ["not tried"] * int(others.sum()))
        stages = Stages(Silent(), self._clock)
        curvature_of(trial, replace(known, validation=few), stages)
        ids = pc.index_in(few.samples["id"], known.corpora["validation"].index["id"].combine_chunks())
        self._add(stages, {"validation": known.corpora["validation"].only(np.sort(ids.to_numpy()))})
        if self._config.eigenpairs is not None:
            self._remarks.append(
                f"{self._config.curvature}: how many products Lanczos takes hangs on the model and the documents, so "
                "that the time of its spectrum is known to a factor of 2 at best"
            )

    def _chosen(self, trial: SelectConfig, documents: Documents, known: Known) -> float:
        """Choose among all documents that were read, by rows like those computed; returns bytes of all results."""
        config, pool, home = self._config, self._parts["pool"], self._scratch / "chosen"
        if config.fraction is not None:
            share = config.fraction
        elif config.num_samples is not None:
            share = min(1.0, config.num_samples / pool.num_samples)
        else:
            share = min(1.0, (config.num_tokens or 0) / pool.num_tokens)
        results = share * pool.num_bytes / (1 - (config.replay or 0.0))  # with the general text beside it
        count, stages = documents.corpora["pool"].num_samples, Stages(Silent(), self._clock)
        trial = replace(trial, fraction=max(share, 1 / count), out=str(home))
        try:
            with RunDir.create(home, trial, documents.tokens) as run:
                choose(trial, run, synthetic_rows(known, documents.corpora), stages, [])
        except InputError as error:
            self._remarks.append(f"choosing and writing are not counted, there is no choice among the sample: {error}")
        else:
            self._add(stages, documents.corpora)
            results += (home / EVIDENCE).stat().st_size * pool.num_samples / count
        return results

    def _add(self, stages: Stages, corpora: Mapping[str, Corpus]) -> None:
        """Add what these stages take with all documents, after they ran on some."""
        for name, timing in stages.timings.items():
            work = timing.work
            self._seconds[name] += timing.at(1.0 if work is None else self._ratio(work, corpora[work.role]))
            if work is not None:
                self._works.append(work)
            if timing.share < 1:
                self._remarks.append(f"{name.lower()}: counted to its full length; on a sample it ended before")

    def _ratio(self, work: Work, corpus: Corpus) -> float:
        part = self._parts[work.role]
        if work.unit == "documents":
            return part.num_samples / corpus.num_samples
        return part.num_tokens / int(corpus.num_tokens.sum())

    def _flops(self, documents: Documents) -> float:
        """Count the operations of every pass of the model; see `Work`."""
        model, total = documents.checkpoint.described(), 0.0
        for role, part in self._parts.items():
            forward, gradients, training = (
                sum(getattr(work, kind) for work in self._works if work.role == role)
                for kind in ("forward", "gradients", "training")
            )
            total += flops(
                part,
                model,
                documents.tokens.max_length,
                matrix=2 * forward + 4 * gradients + 6 * training,
                attention=2 * forward + 6 * gradients + 6 * training,
            )
        return total

    def _left_at(self, home: Path, known: Known) -> dict[str, int]:
        """Return bytes below a run's directory, by part: features grow with the documents, the rest does not."""
        found: dict[str, float] = {"features": 0.0}
        for path in (home / "features").glob("*/**/*.*"):
            below = path.relative_to(home / "features").as_posix()
            role = next((role for role in known.corpora if below.startswith(role)), "pool")
            count, whole = known.corpora[role].num_samples, self._parts[role].num_samples
            size, rows = path.stat().st_size, _size_of_rows(path)
            found["features"] += rows * whole / count + (size - rows) * -(-whole // ROWS_PER_SHARD)
        for name in ("path", "curvature"):
            if size := _size(home / name):
                found[name] = size
        if "path" in found:
            found[WHILE_WALKING] = max(work.disk for work in self._works)
        return {name: round(size) for name, size in found.items()}


def _loosened(config: SelectConfig) -> SelectConfig:
    """Return the same selection, without what only the whole pool can meet; in this process, and on this machine's
    disk.
    """
    given: dict[str, Any] = {name: each.default for name, each in declared(EngineConfig).items()}
    given |= {
        name: each.default for name, each in declared(SelectConfig).items() if each.meta.group in (SIZE, CONSTRAINTS)
    }
    given |= {"fraction": 1.0, "features": None, "num_stiff": None, "bands": None}
    return replace(config, **given, relax_budget=True, overwrite=False)


def _some_of(corpus: Corpus, num_tokens: int) -> Corpus:
    """Return a corpus of about so many tokens: documents of all lengths, as often as they are."""
    count = round(num_tokens / float(corpus.num_tokens.mean()))
    if count >= corpus.num_samples:
        return corpus
    places = (np.arange(max(_FEWEST, count)) + 0.5) * corpus.num_samples / max(_FEWEST, count)
    order = np.argsort(corpus.num_tokens, kind="stable")
    return corpus.only(np.unique(order[places.astype(int)]))


def _stored(directory: Path, part: Part) -> int:
    """Return bytes of a corpus's tokens and index."""
    sizes = {path: path.stat().st_size for path in directory.iterdir() if path.is_file()}
    tokens = sum(size for path, size in sizes.items() if path.suffix == ".tokens")
    rows = (sum(sizes.values()) - tokens) / part.corpus.num_samples
    return round(tokens / int(part.corpus.num_tokens.sum()) * part.num_tokens + rows * part.num_samples)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _size_of_rows(path: Path) -> int:
    """Return bytes of a shard that grow with its rows."""
    if path.suffix == ".parquet":
        about = pq.read_metadata(path)
        groups = [about.row_group(place) for place in range(about.num_row_groups)]
        return sum(group.column(place).total_compressed_size for group in groups for place in range(group.num_columns))
    return path.stat().st_size if path.suffix == ".npy" else 0


def _peak() -> int:
    """Return the process's largest resident memory so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
