"""A run on disk: made, held and written by one process, opened and read by any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.options import OPTIONS_FILE, keep
from direct_anneal.data import Corpus, write_selected
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import remove_directory, remove_leftovers, replacing
from direct_anneal.io.digests import sha256_of_files
from direct_anneal.io.lock import MARK, check_free, held
from direct_anneal.io.records import RecordError, read_record, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.run.layout import (
    COVERAGE,
    EVIDENCE,
    FOLDERS,
    FRONTIER,
    MANIFEST,
    OUTPUT_DATASETS,
    OUTPUT_FILES,
    REPLAY,
    REPORT,
    RETAIN,
    ROLES,
    SELECTED,
    TOKENISATION,
)
from direct_anneal.run.reading import RunFiles, brief
from direct_anneal.run.sources import Tokenisation, lists_entry


class RunDir(RunFiles):
    """One run on disk. Made by `create`, which also lets it be written, or by `open`, which changes nothing."""

    @classmethod
    @contextmanager
    def create(cls, out: str | Path, config: FeaturesConfig, tokens: Tokenisation) -> Iterator[RunDir]:
        """Hold a directory as this run's own, new or to go on in. Only who holds it sweeps what a kill left there.

        An unfinished run may be taken over by any other, which then calls `mark`.

        Raises:
            InputError: it holds another finished run and `overwrite` is off, or files that are no run's or another
                command's, or links that lead out of it, or a run is under way there.
        """
        run = cls(Path(out), trust_remote_code=config.trust_remote_code)
        check_free(run.path, "pool")
        _refuse_links(run.path)
        with held(run.path):
            difference = None if config.overwrite else run.difference(config, tokens)
            if difference:
                raise InputError(
                    f"{run.path} holds another run ({difference}): choose another {option('out')}, or pass "
                    f"{option('overwrite')}"
                )
            if not (run.path / MARK).exists():
                run._write_marker(config, tokens)
            run._sweep()
            yield run

    def mark(self, config: FeaturesConfig, tokens: Tokenisation) -> None:
        """Write the marker of an unfinished run: of its configuration, and once what is there has proved to fit it."""
        if not self.is_finished:
            self._write_marker(config, tokens)

    def difference(self, config: FeaturesConfig, tokens: Tokenisation) -> str | None:
        """Say in what a finished run that lies there was configured otherwise; None where there is none such."""
        if not self.is_finished:
            return None
        wanted = _resolved(config, tokens)
        try:
            found = read_record(self.path / MANIFEST, {"config": dict})["config"]
        except (OSError, RecordError) as error:
            return f"its {MANIFEST} cannot be read, {brief(error)}"
        differing = list(_differing(found, wanted))
        shown = (f"{name}: there {there!s:.60}, now {now!s:.60}" for name, there, now in differing[:3])
        return "; ".join(shown) or None

    def retire(self, config: FeaturesConfig, tokens: Tokenisation) -> None:
        """Remove what an earlier run wrote at its end, the manifest that vouches for it first; features stay."""
        try:
            files = {str(name) for name in read_record(self.path / MANIFEST, {"files": list})["files"]}
        except (OSError, RecordError):
            files = set()
        (self.path / MANIFEST).unlink(missing_ok=True)
        self.__dict__.pop("manifest", None)
        for name in (EVIDENCE, FRONTIER, REPORT, *(OUTPUT_FILES & files)):
            (self.path / name).unlink(missing_ok=True)
        for dataset in (self.path / name for name in OUTPUT_DATASETS if name in files):
            if not dataset.is_symlink() and (dataset / "state.json").is_file():
                remove_directory(dataset)
        self._write_marker(config, tokens)

    def write_coverage(self, coverage: dict[str, Any]) -> None:
        """Keep beside the features which way every parameter went."""
        (self.path / "features").mkdir(exist_ok=True)
        write_record(self.path / "features" / COVERAGE, coverage)

    def write_results(self, evidence: pa.Table, corpus: Corpus, frontier: list[dict[str, Any]] | None) -> list[str]:
        """Write the evidence, the chosen documents and the frontier; returns the names of the documents' files.

        Args:
            evidence: N rows with the columns of `EVIDENCE_COLUMNS`.
            corpus: the pool.
            frontier: as `trace` gives it.
        """
        _write_table(self.path / EVIDENCE, evidence)
        if frontier is not None:
            _write_table(self.path / FRONTIER, pa.Table.from_pylist(frontier))
        return self._write_documents(corpus, evidence, SELECTED)

    def write_replay(self, evidence: pa.Table, corpus: Corpus) -> list[str]:
        """Write the general text beside the selection, of the evidence's column `replay`; returns its files' names."""
        return self._write_documents(corpus, evidence, REPLAY)

    def _write_documents(self, corpus: Corpus, evidence: pa.Table, stem: str) -> list[str]:
        files = write_selected(corpus, evidence[stem].to_numpy(), self.path, stem)
        return [path.relative_to(self.path).as_posix() for path in files]

    def write_manifest(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write manifest.json, last of all, with the digests of the results; returns what a reader will find in it."""
        digests = sha256_of_files(self.results(content["files"]))
        written = write_record(self.path / MANIFEST, {**content, "digests": digests})
        self.__dict__.pop("manifest", None)
        return written

    def results(self, files: list[str]) -> dict[str, Path]:
        """Return the files that a manifest vouches for, by name, those that are there; `files` are the chosen
        documents'.
        """
        names = [MARK, EVIDENCE, FRONTIER, *sorted(OUTPUT_FILES.intersection(files))]
        for dataset in (name for name in OUTPUT_DATASETS if name in files and (self.path / name).is_dir()):
            names += [f"{dataset}/{name}" for name in sorted(path.name for path in (self.path / dataset).iterdir())]
        return {name: self.path / name for name in names if (self.path / name).is_file()}

    def _write_marker(self, config: FeaturesConfig, tokens: Tokenisation) -> None:
        self.__dict__.pop("_known", None)
        # The marker first: a directory with anything else in it and no marker is nobody's, and no run may go on there.
        write_record(self.path / MARK, {**_resolved(config, tokens), TOKENISATION: asdict(tokens)})
        keep(config.in_full, self.path)

    def _sweep(self) -> None:
        """Remove what a kill left half-written; the directories below features/ and corpus/ see to themselves."""
        names = (
            MARK,
            OPTIONS_FILE,
            MANIFEST,
            EVIDENCE,
            FRONTIER,
            REPORT,
            *OUTPUT_FILES,
            *OUTPUT_DATASETS,
            f"features/{COVERAGE}",
        )
        for name in names:
            remove_leftovers(self.path / name)


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the names of what differs, with both values; of options within an option those that differ alone."""
    for name, now in wanted.items():
        there = found.get(name)
        if isinstance(there, dict) and isinstance(now, dict):
            pairs = ((f"{name} {each}", there.get(each), now.get(each)) for each in dict.fromkeys((*there, *now)))
            yield from (pair for pair in pairs if pair[1] != pair[2])
        elif there != now:
            yield name, there, now


def _resolved(config: FeaturesConfig, tokens: Tokenisation) -> dict[str, Any]:
    """Return the inputs of the result, as JSON gives them back."""
    content = redacted({**config.defining, "max_length": tokens.max_length, **lists_entry(config)})
    wanted: dict[str, Any] = json.loads(json.dumps(content))
    return wanted


def _refuse_links(out: Path) -> None:
    """See that nothing that will be written leads out of the directory.

    Raises:
        InputError: one of its folders is a link.
    """
    folders = [out / name for name in (*FOLDERS, *OUTPUT_DATASETS)]
    folders += [out / "corpus" / role for role in (*ROLES, RETAIN)]
    folders += [out / "features" / f"{role}{kind}" for role in (*ROLES, RETAIN) for kind in ("", "-ngrams", "-path")]
    below = (path for pattern in ("*/*", "*/*/*") for path in out.glob(pattern) if path.is_symlink() and path.is_dir())
    if link := next((path for path in chain(folders, below) if path.is_symlink()), None):
        raise InputError(
            subject=str(link),
            must="be a folder of the run itself",
            got="but is a link, and nothing is written through one",
            do=f"move what it leads to into its place, or choose another {option('out')}",
        )


def _write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
