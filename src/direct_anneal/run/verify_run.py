"""Check every file of a run on disk against its digest. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from direct_anneal.config.options import OPTIONS_FILE
from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import check_estimate
from direct_anneal.data import ISSUES_FILE, damaged_caches
from direct_anneal.errors import InputError
from direct_anneal.features import Finding, verify
from direct_anneal.features.columns import verify_columns
from direct_anneal.io.atomic import TEMPORARY_SUFFIX
from direct_anneal.io.digests import sha256, sha256_of_files
from direct_anneal.io.lock import LOCK, MARK
from direct_anneal.io.records import RecordError, read_content, read_record
from direct_anneal.path.kept import damaged_kept
from direct_anneal.run.layout import FOLDERS, LOSSES, MANIFEST, OUTPUT_DATASETS, REPORT, RETAIN, WALKS, roles_of
from direct_anneal.run.manifest import QUARANTINE_COLUMNS
from direct_anneal.run.run_dir import RunDir

STORES = ("validation", "validation-ngrams", "pool", "pool-ngrams")

_SELECT = "run select again with the same options, it makes this anew"
_PAGE_DIGEST = re.compile(rb"<!-- sha256 ([0-9a-f]{64}) -->\n\Z")


def verify_run(path: Path) -> Iterator[Finding]:
    """Return everything amiss in a run's directory, file by file. Cost: reads all of it once."""
    run = RunDir(path)
    try:
        run = RunDir.open(path)
        _ = run.tokens
    except InputError as error:
        yield Finding(path / MARK, str(error), "restore it, or make the run anew elsewhere")
        return
    yield from _results(run)
    yield from _options(run)
    if run.is_finished:
        try:
            origin = run.origin
        except InputError:  # the manifest, which was told of
            origin = run
    else:
        origin = run
    if origin.path != path:
        yield Finding(path, f"features and documents lie in {origin.path}", "verify that, too", harmless=True)
        return
    yield from _features(run)
    yield from _corpora(run)
    for estimate in sorted((path / "curvature").glob("*")) if (path / "curvature").is_dir() else []:
        if estimate.suffix == ".safetensors" and (wrong := check_estimate(estimate)):
            yield Finding(estimate, wrong, _SELECT)
    for kept, wrong in damaged_kept(path / WALKS):
        yield Finding(kept, wrong, _SELECT)
    known = {MARK, LOCK, OPTIONS_FILE, MANIFEST, REPORT, *FOLDERS, *OUTPUT_DATASETS, *run.results(_files(run))}
    for entry in sorted(path.iterdir()):
        if entry.name.endswith(TEMPORARY_SUFFIX):
            yield Finding(entry, "was left half-written", "the next select removes it", harmless=True)
        elif entry.name not in known:
            yield Finding(entry, "is none of the run's", "nothing reads it, move it away", harmless=True)


def _files(run: RunDir) -> list[str]:
    try:
        return [str(name) for name in run.manifest["files"]]
    except InputError:
        return []


def _results(run: RunDir) -> Iterator[Finding]:
    """Return the manifest and what it vouches for, and the report."""
    if not run.is_finished:
        yield Finding(run.path, "no selection is there", "run select, it goes on", harmless=True)
        return
    try:
        manifest = run.manifest
    except InputError as error:
        yield Finding(run.path / MANIFEST, str(error), "run select or solve again with --overwrite")
        return
    there = run.results(manifest["files"])
    digests = sha256_of_files(there)
    for name in sorted({*manifest["digests"], *there}):
        if name not in there:
            yield Finding(run.path / name, "is missing", _SELECT)
        elif digests[name] != manifest["digests"].get(name):
            yield Finding(run.path / name, "was changed since it was written", _SELECT)
    page = run.path / REPORT
    try:
        content = read_content(page)
    except FileNotFoundError:
        return
    except (OSError, RecordError) as error:
        yield Finding(page, str(error), "remove it, and run report")
        return
    sealed = _PAGE_DIGEST.search(content)
    if sealed is None or sha256(content[: sealed.start()]) != sealed[1].decode():
        yield Finding(page, "was changed since it was written", "run report, it makes it anew")


def _options(run: RunDir) -> Iterator[Finding]:
    """Check options.json, which nothing reads but people: it must say what the run's own records say."""
    path = run.path / OPTIONS_FILE
    try:
        found = read_record(path)
    except (OSError, RecordError) as error:
        yield Finding(path, str(error), "take the options from manifest.json", harmless=isinstance(error, OSError))
        return
    recorded = run.recorded_options()
    if found.get("max_length", 0) is None:
        found["max_length"] = recorded.get("max_length")  # the window that was found
    differing = [name for name, value in found.items() if name in recorded and value != recorded[name]]
    unknown = [name for name in found if name not in SelectConfig.__dataclass_fields__]
    if wrong := [*differing, *unknown, *sorted(recorded.keys() - found.keys())]:
        yield Finding(path, f"differs from the run's records in {', '.join(wrong[:3])}", "take them from manifest.json")


def _features(run: RunDir) -> Iterator[Finding]:
    try:
        run.coverage()
    except InputError as error:
        yield Finding(run.path / "features" / "coverage.json", str(error), _SELECT)
    yield from verify_stores(run.path / "features", retained=bool(run.config.retain))


def verify_stores(features: Path, *, retained: bool = False) -> Iterator[Finding]:
    """Return everything amiss in the stores of a run, those that should be there and are not included.

    Args:
        retained: there should be one of text that must not get worse, too.
    """
    columns = features / LOSSES
    stores = (*STORES, RETAIN) if retained or (features / RETAIN).is_dir() else STORES
    for name in stores if is_sketched(features) else ():
        store = features / name
        if store.is_dir():
            yield from verify(store)
        else:
            yield Finding(store, "no features are there", "run select again, it computes them")
    if columns.is_dir():
        for part in (columns, *sorted(part for part in columns.iterdir() if part.is_dir())):
            yield from verify_columns(part)


def is_sketched(features: Path) -> bool:
    """True if gradients should be there: not where losses along the path are all that a run needs."""
    return (features / "pool").is_dir() or not (features / LOSSES).is_dir()


def _corpora(run: RunDir) -> Iterator[Finding]:
    for role in roles_of(run.config):
        directory = run.path / "corpus" / role
        whole = True
        for path, wrong in damaged_caches(directory):
            whole = False
            yield Finding(path, wrong, _SELECT)
        try:
            corpus = run.corpus(role)
            listings = {directory / ISSUES_FILE: "".join(corpus.issues.listing())}
            if is_sketched(run.path / "features"):
                quarantined = run.features(role, ngrams=False).quarantined.select(QUARANTINE_COLUMNS)
                listed = run.store(role).quarantine_lines(quarantined)
                listings[run.path / "features" / role / "quarantined.jsonl"] = listed
        except InputError as error:
            if whole:
                yield Finding(directory, str(error), "the run can be read where its documents are", harmless=True)
            continue
        for path, wanted in listings.items():
            try:
                same = read_content(path, limit=2**40) == wanted.encode("ascii")
            except (OSError, RecordError):
                same = False
            if not same:
                yield Finding(path, "is missing, or was changed since it was written", _SELECT)
