"""A run on disk: made, held and written by one process, opened and read by any other.

Below a run's directory (docs/files.md):

    direct-anneal.json   the marker: whose directory this is, of which configuration, how documents became tokens
    options.json         all options, as `--config` takes them
    corpus/ROLE/         tokens and index of pool and validation set
    features/ROLE/       their gradients; features/ROLE-ngrams/ their n-grams; features/coverage.json
    curvature/           spectra that took the model
    selection.parquet    the evidence; beside it selected.*, replay.*, frontier.parquet, report.html
    manifest.json        written last: it vouches for the results, with their digests

Nothing here is believed before its digest has been checked, and a reader writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.options import OPTIONS_FILE, keep
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus, reopen, write_selected
from direct_anneal.data.formats import FORMATS
from direct_anneal.errors import InputError, option
from direct_anneal.features import FeatureStore, SketchedGradients
from direct_anneal.io.atomic import remove_directory, remove_leftovers, replacing
from direct_anneal.io.digests import sha256, sha256_of_files
from direct_anneal.io.lock import MARK, check_free, held
from direct_anneal.io.records import RecordError, checked, parse, read_content, read_record, unsealed, write_record
from direct_anneal.io.redaction import redacted
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.recorded import recorded_config
from direct_anneal.run.sources import Tokenisation, fields_of, sources_of

MANIFEST, EVIDENCE, FRONTIER, REPORT = "manifest.json", "selection.parquet", "frontier.parquet", "report.html"
COVERAGE = "coverage.json"
TOKENISATION = "tokenisation"
ROLES = ("pool", "validation")
RETAIN = "retain"  # the role of text that must not get worse, where there is such

# A manifest may name anything; only these are ever read or removed on its word.
OUTPUT_DATASETS = (SELECTED, REPLAY) = ("selected", "replay")
_ENDINGS = {format.output.removeprefix(SELECTED) for format in FORMATS.values()} - {""}
_ENDINGS |= {".idx", ".ds.index", ".ds.metadata"}  # beside tokens
OUTPUT_FILES = frozenset(f"{stem}{ending}" for stem in OUTPUT_DATASETS for ending in _ENDINGS)
_LARGEST_TABLE = 2**40  # bytes
_AGAIN = f"run select or solve again with {option('overwrite')}"
_MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("config", "fingerprints", "corpora", "spectrum", "digests"), dict),
    "files": list,
}


class RunDir:
    """One run on disk. Made by `create`, which also lets it be written, or by `open`, which changes nothing.

    Args:
        path: the directory.
        trust_remote_code: for `checkpoint`; never taken from the run.
    """

    def __init__(self, path: Path, *, trust_remote_code: bool = False) -> None:
        self.path = path
        self._trust_remote_code = trust_remote_code
        self._corpora: dict[str, Corpus] = {}
        self._stores: dict[str, FeatureStore] = {}

    @classmethod
    def open(cls, path: str | Path, *, trust_remote_code: bool = False) -> RunDir:
        """A run to be read, finished or not. Reads its marker alone.

        Raises:
            InputError: the directory holds no run.
        """
        run = cls(Path(path), trust_remote_code=trust_remote_code)
        _ = run._known
        return run

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

    # Reading

    @cached_property
    def _known(self) -> dict[str, Any]:
        """The marker."""
        try:
            found = parse(read_content(self.path / MARK))
            if not isinstance(found, dict):
                raise RecordError("must be a JSON object")
            # Earlier versions wrote it without a seal: such a one has members that we know, and no other.
            fields = {*SelectConfig.__dataclass_fields__, "max_length"}
            found = found if found.keys() <= fields else unsealed(found)
            return checked(found, {"model": str, "pool": list, "validation": list})
        except (OSError, RecordError) as error:
            raise InputError(
                subject="RUN_DIR",
                must="be the directory of a select or features run",
                got=f"but {self.path} holds none that can be read ({MARK} {_brief(error)})",
                do=f"pass what was given to them as {option('out')}",
            ) from error

    @cached_property
    def config(self) -> FeaturesConfig:
        """The inputs of its features, as the run recorded them.

        Raises:
            InputError: it holds what no version of this package wrote.
        """
        known = self._given
        try:
            return FeaturesConfig(
                **{name: known[name] for name in FeaturesConfig.__dataclass_fields__ if name in known}
            )
        except TypeError as error:  # a member of a kind that no option has
            raise self._damaged(MARK, error) from error

    @property
    def _given(self) -> dict[str, Any]:
        """The options in the marker, as far as they can be taken from a run that anybody may have written."""
        known = {name: self._known[name] for name in SelectConfig.__dataclass_fields__ if name in self._known}
        # Whoever wrote the run's files does not decide whether code is run here: who opens it does.
        return known | {"out": str(self.path), "trust_remote_code": False, "plugin": ()}

    def configured(self, changes: Mapping[str, Any]) -> SelectConfig:
        """The configuration with changes, for a run that begins with this one's features.

        Raises:
            InputError: a value cannot be, or the changes would write over this run unasked.
        """
        known = self._given
        if self.is_finished and isinstance(tokens := self.manifest["config"].get("batch_tokens"), int):
            known["batch_tokens"] = tokens
        try:
            config = recorded_config(known, changes)
        except TypeError as error:  # a member of a kind that no option has
            raise self._damaged(MARK, error) from error
        if Path(config.out).resolve() == self.path.resolve() and not config.overwrite:
            raise InputError(
                field="out",
                must="be another directory than the run's",
                got=f"but is {self.path}",
                do=f"name one, or pass {option('overwrite')}",
            )
        return config

    @cached_property
    def tokens(self) -> Tokenisation:
        """The token layout, as the run recorded it."""
        if TOKENISATION not in self._known:  # an earlier version
            return Tokenisation.of(self.checkpoint(), self._known.get("max_length"))
        try:
            found = Tokenisation(**self._known[TOKENISATION])
        except TypeError as error:
            raise self._damaged(MARK, error) from error
        whole = isinstance(found.vocab_size, int) and isinstance(found.max_length, int)
        if not whole or not isinstance(found.tokenizer, str) or not isinstance(found.separator, int | None):
            raise self._damaged(MARK, None)
        if not all(isinstance(digest, str | None) for digest in (found.annealed, found.annealed_tokenizer)):
            raise self._damaged(MARK, None)
        return found

    def recorded_options(self) -> dict[str, Any]:
        """The options that results depend on, by name; the window is what it came to."""
        return {name: value for name, value in self._known.items() if name != TOKENISATION}

    def checkpoint(self) -> Checkpoint:
        """The model that will be annealed, of which nothing is loaded yet; a smaller one may have chosen for it.

        Raises:
            InputError: it cannot be read, or needs code that may not run.
        """
        return Checkpoint(
            self._known["model"],
            revision=self._known.get("revision"),
            subfolder=self._known.get("subfolder"),
            trust_remote_code=self._trust_remote_code,
        )

    @property
    def is_finished(self) -> bool:
        """True if results are there, whole or not."""
        return os.path.lexists(self.path / MANIFEST)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished run.

        Raises:
            InputError: the run is not finished, or its manifest is damaged or of an earlier version.
        """
        try:
            found = checked(unsealed(_object(self.path / MANIFEST)), _MANIFEST_TYPES)
            fingerprints = found["fingerprints"]
            if (
                not isinstance(found.get("features_of"), str | None)
                or not {"pool", "validation"} <= fingerprints.keys()
            ):
                raise RecordError("says not what it was made from")
        except FileNotFoundError as error:
            raise InputError(
                subject="RUN_DIR",
                must="hold a finished run of select or solve",
                got=f"but {self.path / MANIFEST} is missing",
                do="finish the run first, with the command that began it",
            ) from error
        except (OSError, RecordError) as error:
            raise InputError(
                subject="RUN_DIR",
                must="hold a finished run of select or solve",
                got=f"but {self.path / MANIFEST} is damaged or of an earlier version ({_brief(error)})",
                do=f"run select or solve there again with {option('overwrite')}, which keeps features that fit",
            ) from error
        return found

    @cached_property
    def origin(self) -> RunDir:
        """The run whose features and corpora this one uses: itself, or another that it was solved from."""
        elsewhere = self.manifest.get("features_of") if self.is_finished else None
        return self if elsewhere is None else RunDir.open(elsewhere, trust_remote_code=self._trust_remote_code)

    def corpus(self, role: str, fingerprint: str | None = None) -> Corpus:
        """The documents of a role with their tokens. Cost: reads tokens and index once, to see that they are whole.

        Args:
            role: "pool", "validation" or "retain".
            fingerprint: of the corpus that is expected; the one in the manifest, or in the features, where left out.

        Raises:
            InputError: they have changed since, or are damaged.
        """
        if role not in self._corpora:
            config, tokens = self.config, self.tokens
            if fingerprint is None:
                named = self.manifest["fingerprints"].get(role) if self.is_finished else None
                fingerprint = str(named or self.store(role).fingerprint["data"])
            self._corpora[role] = reopen(
                sources_of(role, config, tokens, self.origin.path, []),
                role=role,
                fields=fields_of(config),
                tokenizer_fingerprint=tokens.tokenizer,
                vocab_size=tokens.vocab_size,
                max_length=tokens.max_length,
                directory=self.origin.path / "corpus" / role,
                fingerprint=fingerprint,
            )
        return self._corpora[role]

    def store(self, role: str) -> FeatureStore:
        """The complete store of a role, or of "pool-ngrams" or "validation-ngrams". Cost: reads it once.

        Raises:
            InputError: shards are missing or damaged.
        """
        if role not in self._stores:
            self._stores[role] = FeatureStore.open(self.origin.path / "features" / role)
        return self._stores[role]

    def features(self, role: str, *, ngrams: bool = True, corpus: Corpus | None = None) -> SketchedGradients:
        """The gradients of a role's documents, and their n-grams.

        Args:
            corpus: the same documents where they lie elsewhere, too; the run's own where left out.

        Raises:
            InputError: features or documents are damaged, or not of each other.
        """
        store, corpus = self.store(role), self.corpus(role) if corpus is None else corpus
        words = self.store(f"{role}-ngrams") if ngrams else None
        for one in (store, *([words] if words else [])):
            if one.fingerprint.get("data") != corpus.fingerprint or one.header.num_samples != corpus.num_samples:
                raise InputError(
                    subject=str(one.directory),
                    must=f"hold features of the {role}'s documents",
                    got="but they are of others",
                    do="run select again",
                )
        return SketchedGradients.load(store, corpus.index, words)

    def evidence(self, columns: list[str] | None = None) -> pa.Table:
        """selection.parquet, N rows in the pool's order, as the run wrote it to the last byte.

        Raises:
            InputError: it is missing or damaged.
        """
        path = self.path / EVIDENCE
        try:
            content = read_content(path, limit=_LARGEST_TABLE)
            if sha256(content) != self.manifest["digests"].get(EVIDENCE):
                raise RecordError("was changed since it was written")
            return pq.read_table(pa.BufferReader(content), columns=columns)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                subject=str(path), must="be as the run wrote it", got=f"but {_brief(error)}", do=_AGAIN
            ) from error

    def selected(self) -> NDArray[np.bool_]:
        """Mark the selected documents of the pool, (N,) bool.

        Raises:
            InputError: the evidence is damaged, or of other documents than the pool's.
        """
        return self._marked(SELECTED)

    @property
    def replay_share(self) -> float:
        """Share of the tokens of selection and replay together that is replay; 0 where there is none."""
        share = (self.manifest.get("replay") or {}).get("share_reached", 0.0)
        return float(share) if isinstance(share, float) and 0 <= share < 1 else 0.0

    def replayed(self) -> NDArray[np.bool_]:
        """Mark the documents of the pool that are general text beside the selection, (N,) bool.

        Raises:
            InputError: the run has none, or as of `selected`.
        """
        if not self.replay_share:
            raise InputError(
                subject="RUN_DIR",
                must="hold general text beside the selection",
                got=f"but {self.path} has none",
                do=f"choose again with {option('replay')}",
            )
        return self._marked(REPLAY)

    def _marked(self, column: str) -> NDArray[np.bool_]:
        table, pool = self.evidence(["id", column]), self.corpus("pool")
        ids = [values.cast(pa.large_string()).combine_chunks() for values in (table["id"], pool.index["id"])]
        selected = table[column].to_numpy()
        if not ids[0].equals(ids[1]) or selected.dtype != np.bool_ or not selected.any():
            raise InputError(
                subject=str(self.path / EVIDENCE),
                must="say of every document of the pool, in the pool's order, whether it is selected",
                got="but does not",
                do=_AGAIN,
            )
        return np.asarray(selected, dtype=bool)

    def coverage(self) -> dict[str, Any] | None:
        """Read the coverage of the parameters; None where it is lost.

        Raises:
            InputError: it is damaged.
        """
        path = self.path / "features" / COVERAGE
        try:
            found = parse(read_content(path))
            if not isinstance(found, dict):
                raise RecordError("must be a JSON object")
            # Earlier versions wrote these two members and no seal.
            return checked(found if found.keys() == {"entries", "ways"} else unsealed(found), {"ways": list})
        except FileNotFoundError:
            return None
        except (OSError, RecordError) as error:
            raise InputError(
                subject=str(path),
                must="be as the run wrote it",
                got=f"but {_brief(error)}",
                do="run select again there, it makes it anew",
            ) from error

    def _damaged(self, name: str, error: BaseException | None) -> InputError:
        reason = "" if error is None else f" ({_brief(error)})"
        return InputError(
            subject=str(self.path / name),
            must="be as a run wrote it",
            got=f"but is not{reason}",
            do="choose another run",
        )

    # Writing, by who holds the directory

    def mark(self, config: FeaturesConfig, tokens: Tokenisation) -> None:
        """Write the marker of an unfinished run: of its configuration, and once what is there has proved to fit it."""
        if not self.is_finished:
            self._write_marker(config, tokens)

    def difference(self, config: FeaturesConfig, tokens: Tokenisation) -> str | None:
        """In what a finished run that lies there was configured otherwise; None where there is none such."""
        if not self.is_finished:
            return None
        wanted = _resolved(config, tokens)
        try:
            found = read_record(self.path / MANIFEST, {"config": dict})["config"]
        except (OSError, RecordError) as error:
            return f"its {MANIFEST} cannot be read, {_brief(error)}"
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        shown = (f"{name}: there {found.get(name)!s:.60}, now {wanted[name]!s:.60}" for name in differing[:3])
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
        """The files that a manifest vouches for, by name, those that are there; `files` are the chosen documents'."""
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


def roles_of(config: FeaturesConfig) -> tuple[str, ...]:
    """The roles that a run of this configuration has corpora and features of."""
    return (*ROLES, RETAIN) if config.retain else ROLES


def _resolved(config: FeaturesConfig, tokens: Tokenisation) -> dict[str, Any]:
    """The inputs of the result, as JSON gives them back."""
    content = redacted({**config.defining, "max_length": tokens.max_length})
    wanted: dict[str, Any] = json.loads(json.dumps(content))
    return wanted


def _refuse_links(out: Path) -> None:
    """See that nothing that will be written leads out of the directory.

    Raises:
        InputError: one of its folders is a link.
    """
    folders = [out / name for name in ("corpus", "features", "curvature", "path", *OUTPUT_DATASETS)]
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


def _object(path: Path) -> dict[str, Any]:
    found = parse(read_content(path))
    if not isinstance(found, dict):
        raise RecordError("must be a JSON object")
    return found


def _write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _brief(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
