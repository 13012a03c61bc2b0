"""A run on disk, as any process may read it: nothing is believed before its digest has been checked.

N documents of the pool.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.features import ColumnsConfig, FeaturesConfig
from direct_anneal.config.select import SelectConfig
from direct_anneal.data import Corpus, reopen
from direct_anneal.errors import InputError, option
from direct_anneal.features import FeatureStore, SketchedGradients
from direct_anneal.io.digests import sha256
from direct_anneal.io.lock import MARK
from direct_anneal.io.records import RecordError, checked, parse, read_content, unsealed
from direct_anneal.io.tables import read_parquet
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.layout import (
    COVERAGE,
    EVIDENCE,
    LISTS,
    MANIFEST,
    REPLAY,
    SELECTED,
    TOKENISATION,
)
from direct_anneal.run.recorded import recorded_config
from direct_anneal.run.sources import Tokenisation, fields_of, sources_of

_LARGEST_TABLE = 2**40  # bytes
_AGAIN = f"run select or solve again with {option('overwrite')}"
_MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("config", "fingerprints", "corpora", "spectrum", "digests"), dict),
    "files": list,
}

Config = TypeVar("Config", bound=FeaturesConfig)


class RunFiles:
    """One run on disk, to be read.

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
    def open(cls, path: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Return a run to be read, finished or not. Reads its marker alone.

        Raises:
            InputError: the directory holds no run.
        """
        run = cls(Path(path), trust_remote_code=trust_remote_code)
        _ = run._known
        return run

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
                subject="the run",
                must="be the directory of a select or features run",
                got=f"but {self.path} holds none that can be read ({MARK} {brief(error)})",
                do=f"pass what was given to them as {option('out')}",
            ) from error

    @cached_property
    def config(self) -> FeaturesConfig:
        """The inputs of its features, as the run recorded them.

        Raises:
            InputError: it holds what no version of this package wrote.
        """
        return self._config_of(FeaturesConfig, self._given)

    @property
    def columns_config(self) -> ColumnsConfig:
        """The same of a run of `features`, with what was asked for beside gradients.

        Raises:
            InputError: as of `config`.
        """
        return self._config_of(ColumnsConfig, self._given | {"path": self._known.get("path")})

    def _config_of(self, kind: type[Config], known: dict[str, Any]) -> Config:
        try:
            return kind(**{name: known[name] for name in kind.__dataclass_fields__ if name in known})
        except TypeError as error:  # a member of a kind that no option has
            raise self._damaged(MARK, error) from error

    @property
    def _given(self) -> dict[str, Any]:
        """The options in the marker, as far as they can be taken from a run that anybody may have written."""
        known = {name: self._known[name] for name in SelectConfig.__dataclass_fields__ if name in self._known}
        # Whoever wrote the run's files does not decide whether code is run here: who opens it does.
        return known | {"out": str(self.path), "trust_remote_code": False, "plugin": ()}

    def configured(self, changes: Mapping[str, Any]) -> SelectConfig:
        """Return the configuration with changes, for a run that begins with this one's features.

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
        """Return the options that results depend on, by name; the window is what it came to."""
        return {name: value for name, value in self._known.items() if name not in (TOKENISATION, LISTS)}

    def checkpoint(self) -> Checkpoint:
        """Return the model that will be annealed, of which nothing is loaded yet; a smaller one may have chosen for it.

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
                subject="the run",
                must="hold a finished run of select or solve",
                got=f"but {self.path / MANIFEST} is missing",
                do="finish the run first, with the command that began it",
            ) from error
        except (OSError, RecordError) as error:
            raise InputError(
                subject="the run",
                must="hold a finished run of select or solve",
                got=f"but {self.path / MANIFEST} is damaged or of an earlier version ({brief(error)})",
                do=f"run select or solve there again with {option('overwrite')}, which keeps features that fit",
            ) from error
        return found

    @cached_property
    def origin(self) -> Self:
        """The run whose features and corpora this one uses: itself, or another that it was solved from."""
        elsewhere = self.manifest.get("features_of") if self.is_finished else None
        return self if elsewhere is None else type(self).open(elsewhere, trust_remote_code=self._trust_remote_code)

    def corpus(self, role: str, fingerprint: str | None = None) -> Corpus:
        """Return the documents of a role with their tokens. Cost: reads tokens and index once, to see that they are
        whole.

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
        """Return the complete store of a role, or of "pool-ngrams" or "validation-ngrams". Cost: reads it once.

        Raises:
            InputError: shards are missing or damaged.
        """
        if role not in self._stores:
            self._stores[role] = FeatureStore.open(self.origin.path / "features" / role)
        return self._stores[role]

    def features(self, role: str, *, ngrams: bool = True, corpus: Corpus | None = None) -> SketchedGradients:
        """Return the gradients of a role's documents, and their n-grams.

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
        """Read selection.parquet, N rows in the pool's order, as the run wrote it to the last byte.

        Raises:
            InputError: it is missing or damaged.
        """
        path = self.path / EVIDENCE
        try:
            content = read_content(path, limit=_LARGEST_TABLE)
            if sha256(content) != self.manifest["digests"].get(EVIDENCE):
                raise RecordError("was changed since it was written")
            return read_parquet(content, columns)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                subject=str(path), must="be as the run wrote it", got=f"but {brief(error)}", do=_AGAIN
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
                subject="the run",
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
                got=f"but {brief(error)}",
                do="run select again there, it makes it anew",
            ) from error

    def _damaged(self, name: str, error: BaseException | None) -> InputError:
        reason = "" if error is None else f" ({brief(error)})"
        return InputError(
            subject=str(self.path / name),
            must="be as a run wrote it",
            got=f"but is not{reason}",
            do="choose another run",
        )


def _object(path: Path) -> dict[str, Any]:
    found = parse(read_content(path))
    if not isinstance(found, dict):
        raise RecordError("must be a JSON object")
    return found


def brief(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
