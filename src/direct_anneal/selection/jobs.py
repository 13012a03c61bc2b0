"""`features` as N jobs without a coordinator, and what puts their shards together.

Each job is a run of its own below OUT/jobs/I-of-N, which can be killed and go on by itself. Each file of documents is
tokenised by one job, for all, below OUT/jobs/corpus. A job makes the shards I, I + N, I + 2 N, ..., whose bytes do not
depend on who makes them. The path is walked by each: that is training on the validation set, which is small, and ends
in the same bytes on machines of one kind.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from direct_anneal.config.features import ColumnsConfig
from direct_anneal.data import SharedCaches
from direct_anneal.data.sources import FETCHED
from direct_anneal.errors import InputError, option
from direct_anneal.features import FeatureStore
from direct_anneal.features.columns import ColumnStore
from direct_anneal.io.atomic import linked, temporary_name
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.lock import LOCK, MARK, held
from direct_anneal.progress import current_progress
from direct_anneal.run.layout import COVERAGE, JOBS, LOSSES, RETAIN, WALKS, roles_of
from direct_anneal.run.run_dir import RunDir

_NAME = re.compile(r"(\d+)-of-(\d+)")


def config_of_job(config: ColumnsConfig, number: int, count: int) -> ColumnsConfig:
    """Return the run that job `number` of `count` is, of a configuration of the whole.

    Raises:
        InputError: the directory of the whole holds something else.
    """
    home = Path(config.out)
    if home.is_dir() and (others := {path.name for path in home.iterdir()} - {JOBS, LOCK, FETCHED}):
        raise InputError(
            field="out", must="be new, empty or of jobs", got=f"but {home} holds {min(others)}", do="choose another"
        )
    return replace(config, out=str(home / JOBS / f"{number}-of-{count}"))


def caches_of_jobs(home: Path, role: str, number: int, count: int) -> SharedCaches:
    """Return where job `number` of `count` finds the tokens that others made of a corpus, and leaves its own."""
    return SharedCaches(directory=home / JOBS / "corpus" / role, number=number, count=count)


def merge_shards(run: Path, *, trust_remote_code: bool = False) -> ColumnsConfig:
    """Put the shards of all jobs together, as one process would have left them, and remove the jobs.

    Returns:
        the configuration of the whole, for `compute_features`, which finds every shard there.

    Raises:
        InputError: a job or a shard is missing or damaged, or the jobs are not of one model, pool and set of options.
    """
    jobs = _jobs(run)
    opened = [RunDir.open(job, trust_remote_code=trust_remote_code) for job in jobs]
    config = replace(opened[0].columns_config, out=str(run))
    with held(run):
        stores = {role: _checked(run, jobs, role) for role in roles_of(config)}
        # Those of a version that left n-grams to whoever puts the shards together have none.
        words = [f"{role}-ngrams" for role in roles_of(config) if role != RETAIN]
        stores |= {name: _checked(run, jobs, name) for name in words if (jobs[0] / "features" / name).is_dir()}
        losses = _checked_losses(run, jobs)
        RunDir(run).mark(config, opened[0].tokens)
        for role, (first, *others) in stores.items():
            sizes = {store.batch_tokens(config.batch_tokens) for store in (first, *others)}
            if len(sizes - {None}) > 1:  # a job without a shard has none
                current_progress().note(
                    f"{role}: the jobs' batches differ in size, so that results differ from those of one process by "
                    f"rounding; {option('batch_tokens')} makes them equal"
                )
            whole = run / "features" / role
            whole.mkdir(parents=True, exist_ok=True)
            for shard in range(first.num_shards):
                for name in first.files(shard):
                    _link_if_there(jobs[shard % len(jobs)] / "features" / role / name, whole / name)
            for name in first.beside():
                _link_if_there(jobs[0] / "features" / role / name, whole / name)
        for columns in losses:
            _join_losses(run, columns)
        for path in sorted((jobs[0] / WALKS).glob("*")):
            (run / WALKS).mkdir(exist_ok=True)
            _link_if_there(path, run / WALKS / path.name)
        _link_if_there(jobs[0] / "features" / COVERAGE, run / "features" / COVERAGE)
        for path in sorted((jobs[0] / "corpus").rglob("*")):
            if path.is_file():
                target = run / path.relative_to(jobs[0])
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_if_there(path, target)
    return config


def _jobs(run: Path) -> list[Path]:
    """Return the directories of all N jobs, in order."""
    found = {
        (int(name[1]), int(name[2])): job
        for job in (run / JOBS).iterdir()
        if (name := _NAME.fullmatch(job.name)) and (job / MARK).exists()
    }
    counts = sorted({count for _, count in found})
    if len(counts) != 1:
        raise InputError(
            subject=str(run / JOBS),
            must="hold the jobs of one division",
            got=f"but there are some of {' and '.join(map(str, counts))}",
            do="remove those that are not meant",
        )
    [count] = counts
    if missing := [number for number in range(count) if (number, count) not in found]:
        raise InputError(
            subject=str(run),
            must=f"hold all {count} jobs",
            got=f"but {', '.join(map(str, missing[:10]))} {'is' if len(missing) == 1 else 'are'} missing",
            do=f"run features with {option('shards')} {missing[0]}/{count}",
        )
    return [found[number, count] for number in range(count)]


def _checked(run: Path, jobs: list[Path], role: str) -> list[FeatureStore]:
    """Return every job's store of a role: of one header, and each with the shards that are its own."""
    stores = [_store(job, role) for job in jobs]
    first = stores[0]
    for job, store in zip(jobs, stores, strict=True):
        if store.header != first.header:
            raise InputError(
                subject=str(job), must="be of the same model, documents and options as job 0", do=_again(job)
            )
    lacking = [shard for shard in range(first.num_shards) if not stores[shard % len(jobs)].holds(shard)]
    if lacking:
        raise _lacking(run, first.num_shards, role, lacking, len(jobs))
    return stores


def _checked_losses(run: Path, jobs: list[Path]) -> list[list[ColumnStore]]:
    """Return every job's store of losses at each point of the path: of the same walks, each with its own shards."""
    homes = [job / "features" / LOSSES for job in jobs]
    points = sorted({path.name for home in homes if home.is_dir() for path in home.iterdir() if path.is_dir()})
    found = []
    for point in points:
        stores = [_columns(job, home / point) for job, home in zip(jobs, homes, strict=True)]
        for job, store in zip(jobs, stores, strict=True):
            if store.fingerprint != stores[0].fingerprint:
                raise InputError(
                    subject=str(job), must="be of the same model, documents and options as job 0", do=_again(job)
                )
        missing = [set(store.missing()) for store in stores]
        lacking = [shard for shard in range(stores[0].num_shards) if shard in missing[shard % len(jobs)]]
        if lacking:
            raise _lacking(run, stores[0].num_shards, "losses along the path", lacking, len(jobs))
        found.append(stores)
    for path in sorted((jobs[0] / WALKS).glob("end-*")) if points else []:
        wanted = sha256_of_file(path)
        for job in jobs:
            if not (own := job / WALKS / path.name).exists() or sha256_of_file(own) != wanted:
                raise InputError(
                    subject=str(job),
                    must="have walked the path to the bit as job 0 did",
                    got=f"but its {path.name} is another",
                    do=f"run the jobs on machines of one kind, or copy {jobs[0] / WALKS} to the jobs before they begin",
                )
    return found


def _columns(job: Path, home: Path) -> ColumnStore:
    try:
        return ColumnStore.open(home)
    except InputError as error:
        raise InputError(subject=str(job), must="have finished", got=f"but {error}", do=_again(job)) from error


def _join_losses(run: Path, stores: list[ColumnStore]) -> None:
    """Link the shards of one point of the path, each from the job that made it."""
    first = Path(stores[0].directory)
    whole = run / "features" / LOSSES / first.name
    whole.mkdir(parents=True, exist_ok=True)
    for shard in range(stores[0].num_shards):
        for name in stores[0].files(shard):
            _link_if_there(Path(stores[shard % len(stores)].directory) / name, whole / name)
    for name in stores[0].beside():
        _link_if_there(first / name, whole / name)


def _store(job: Path, role: str) -> FeatureStore:
    try:
        return FeatureStore.open_partial(job / "features" / role)
    except InputError as error:
        raise InputError(subject=str(job), must="have finished", got=f"but {error}", do=_again(job)) from error


def _lacking(run: Path, count: int, what: str, lacking: list[int], num_jobs: int) -> InputError:
    numbers = sorted({shard % num_jobs for shard in lacking})
    return InputError(
        subject=str(run),
        must=f"have all {count:,} shards of the {what}",
        got=f"but {len(lacking):,} are missing or damaged",
        do=f"run again the jobs {', '.join(map(str, numbers))} of {num_jobs}",
    )


def _again(job: Path) -> str:
    return f"run its job again, {option('shards')} {job.name.replace('-of-', '/')}"


def _link_if_there(source: Path, target: Path) -> None:
    if source.exists():
        linked(source, target)


def remove_jobs(run: Path) -> None:
    """Remove what is put together, all at once for whoever looks."""
    gone = temporary_name(run / JOBS)
    (run / JOBS).rename(gone)
    shutil.rmtree(gone)
