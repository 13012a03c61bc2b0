"""One scenario's documents, gradients and choices: what all of its runs share.

Below a scenario's directory: corpus/ (tokens), select-HASH/ (a run of `select`, its features used by every arm of the
same sketch), choices/ARM-FRACTION-SEED-INPUTS/ (the chosen documents, and choice.json, written last).
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines import BASELINES, Candidates, duplicates, take
from direct_anneal.compare.config import WHOLE_POOL, Arm, Recipe, Scenario
from direct_anneal.compare.evidence import Evidence
from direct_anneal.config.choice import ConstraintsConfig
from direct_anneal.config.distil import DistilConfig
from direct_anneal.config.option import declared
from direct_anneal.data import Corpus, Names, TokenLayout, expand, prepare, write_selected
from direct_anneal.distill import read_scorer
from direct_anneal.distill.pipeline import distil
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.io.digests import short_digest, short_hash
from direct_anneal.io.id_lists import places_of
from direct_anneal.io.records import RecordError, read_record, write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.objectives.damage import WITHOUT_SIGNS
from direct_anneal.path import PathConfig
from direct_anneal.progress import Silent, showing
from direct_anneal.run.likeness import told_apart
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.safety import num_shared
from direct_anneal.selection import SOLVING_FIELDS, select

_MOST_SEEN = 0.01  # of the held-out documents that arms can see: a web pool has a few of any text


@dataclass(frozen=True)
class Choice:
    """The choice of an arm.

    Attributes:
        files: of the chosen documents.
        num_documents, num_tokens: of the choice.
        domains: chosen documents of each domain of the pool.
        seconds: that choosing took, gradients included where the arm needs them.
    """

    files: list[str]
    num_documents: int
    num_tokens: int
    domains: dict[str, int]
    seconds: float


class Choices:
    """The choices of all arms in one scenario; what is there already is not made again.

    Args:
        directory: of the scenario.
        note: is told before what takes long.
    """

    def __init__(self, recipe: Recipe, scenario: Scenario, directory: Path, note: Callable[[str], object]) -> None:
        self.directory = directory
        self._recipe, self._scenario, self._note = recipe, scenario, note
        self._checkpoint = Checkpoint(recipe.model)
        self._window = self._checkpoint.window(recipe.select.get("max_length"))

    @cached_property
    def pool(self) -> Corpus:
        """N documents."""
        return self._read("pool", self._scenario.pool)

    @cached_property
    def held_out(self) -> Corpus:
        """The data that models are scored on."""
        corpus = self._read("held_out", self._scenario.held_out)
        if self._recipe.prompt_field and not self._has_prompts(corpus):
            self._note(f"{self._scenario.name}: no held-out record has a prompt, all of their text is predicted")
        return corpus

    def check(self) -> None:
        """See that what is scored can tell arms apart, before hours of work.

        Raises:
            InputError: held-out documents lack a domain that the scenario names, or one that shows what is forgotten;
                arms can see them; or an arm's ids are not the pool's.
        """
        domains = set(self.held_out.index["domain"].to_pylist())
        for part in ("target", "aside"):
            if unknown := set(getattr(self._scenario, part)) - domains:
                raise InputError(
                    subject=f"scenario {self._scenario.name}: domains of {part}",
                    must="be among the held-out documents'",
                    got=f"but {', '.join(sorted(unknown))} is not",
                    do=f"they have {', '.join(sorted(map(str, domains))):.200}",
                )
        if not self._scenario.others(domains):
            raise InputError(
                subject=f"scenario {self._scenario.name}: held_out",
                must="have documents of a domain that is neither the target's nor set aside",
                got=f"but has {', '.join(sorted(map(str, domains))):.200} alone",
                do="add general text: it shows what is forgotten",
            )
        for arm in self._recipe.arms:
            if arm.ids:
                self._places(arm, arm.ids)
        for role, corpus in (("pool", self.pool), ("validation set", self.validation)):
            seen = num_shared(corpus, self.held_out)
            if seen > _MOST_SEEN * self.held_out.num_samples:
                raise InputError(
                    subject=f"scenario {self._scenario.name}: the {self.held_out.num_samples:,} held-out documents",
                    must="be text that no arm sees",
                    got=f"but {seen:,} documents of the {role} are among them",
                    do=f"leave these out of the {role}, or score other text",
                )
            if seen:
                self._note(f"{self._scenario.name}: {seen:,} documents of the {role} are held-out documents, too")

    def budget(self, fraction: float) -> int:
        """Return how many tokens to choose."""
        return _share(fraction, int(self.pool.num_tokens.sum()))

    def choice(self, arm: Arm, fraction: float, seed: int, inputs: str) -> Choice:
        """Choose, and write the chosen documents, unless that was done before.

        Args:
            inputs: a hash of all that the choice depends on beside the scenario.
        """
        name = f"{arm.name}-{fraction:g}-{seed if arm.is_seeded else 'any'}-{inputs}"
        directory = self.directory / "choices" / name
        record = directory / "choice.json"
        if (made := _kept(record)) is not None:
            return Choice(**made)
        features, looking = self.with_features(arm) if arm.needs_gradients and arm.distil is None else (None, 0.0)
        num_tokens = self.budget(fraction)
        baseline = BASELINES.get(str(arm.baseline))
        known_before = 0.0 if baseline is None else self._evidence(arm).seconds(baseline)
        started = time.monotonic()
        if arm.baseline == WHOLE_POOL:
            mask = np.ones(self.pool.num_samples, dtype=bool)
        elif arm.ids:
            mask = self._best_first(arm, arm.ids, num_tokens)
        elif arm.distil is not None:
            mask = self._by_distilled(arm, arm.distil, fraction, directory.with_name(f"{name}.distilled"))
        elif arm.baseline is not None:
            mask = self._by_baseline(arm, num_tokens, seed, features)
        else:
            assert features is not None
            mask = self._by_select(arm, fraction, features)
        seconds = time.monotonic() - started + looking + known_before
        shutil.rmtree(directory, ignore_errors=True)  # of a choice that was interrupted
        files = write_selected(self.pool, mask, directory)
        domains = Counter(np.array(self.pool.index["domain"].to_pylist(), dtype=object)[mask].tolist())
        choice = Choice(
            files=[str(path) for path in files],
            num_documents=int(mask.sum()),
            num_tokens=int(self.pool.num_tokens[mask].sum()),
            domains=dict(sorted(domains.items())),
            seconds=round(seconds, 3),
        )
        write_record(record, asdict(choice))
        return choice

    def gradients(self, features: Path) -> tuple[SketchedGradients, SketchedGradients]:
        """Return gradients of pool and validation set, from a run of `with_features`."""
        run = RunDir.open(features)
        return (
            run.features("pool", ngrams=False, corpus=self.pool),
            run.features("validation", ngrams=False, corpus=self.validation),
        )

    def _by_baseline(self, arm: Arm, num_tokens: int, seed: int, features: Path | None) -> NDArray[np.bool_]:
        gradients = None if features is None else self.gradients(features)
        baseline = BASELINES[str(arm.baseline)]
        candidates = Candidates(
            self.pool,
            self.validation,
            self._recipe.text_field,
            gradients,
            self._evidence(arm).losses(baseline.needs_losses) if baseline.needs_losses else None,
            self._evidence(arm).hidden_states() if baseline.needs_embeddings else None,
        )
        settings = {} if baseline.needs_losses else arm.options
        scores = baseline.score(candidates, seed, **settings)
        if arm.deduplicate is not None:
            repeated = duplicates(candidates.pool_texts, candidates.ids, arm.deduplicate)
            scores = np.where(repeated, np.nan, scores)
        return take(scores, candidates, num_tokens=num_tokens)

    def _best_first(self, arm: Arm, ids: Sequence[str], num_tokens: int) -> NDArray[np.bool_]:
        """Take as many of the ids, in order, as fit."""
        candidates = Candidates(self.pool, self.validation, self._recipe.text_field, None)
        places = self._places(arm, ids)
        scores = np.full(len(candidates.ids), np.nan)
        scores[places] = -np.arange(len(places), dtype=np.float64)
        return take(scores, candidates, num_tokens=num_tokens)

    def _places(self, arm: Arm, ids: Sequence[str]) -> NDArray[np.intp]:
        """Return where documents of these ids stand in the pool, each once.

        Raises:
            InputError: one is not there.
        """
        places, missing = places_of(ids, self.pool.index["id"].to_pylist())
        if missing:
            raise InputError(
                subject=f"arm {arm.name}: ids",
                must="be of documents of the pool",
                got=f"but {len(missing)} of {len(ids)} are not in that of {self._scenario.name}, {missing[0]!r} first",
            )
        return places

    def _by_select(self, arm: Arm, fraction: float, directory: Path) -> NDArray[np.bool_]:
        # Another model may have another tokenizer: it chooses as large a part of what it counts, and we count again.
        known = RunDir.open(directory).manifest
        self._select(directory, {**arm.select, "num_tokens": _share(fraction, known["corpora"]["pool"]["tokens"])})
        table = RunDir.open(directory).evidence(["id", "selected", "rank"])
        chosen = table.filter(table["selected"]).sort_by("rank")["id"].to_pylist()
        return self._best_first(arm, chosen, self.budget(fraction))

    def _by_distilled(self, arm: Arm, share: float, fraction: float, directory: Path) -> NDArray[np.bool_]:
        """Choose from a sample of the pool, and by what that was distilled into from all of it."""
        candidates = Candidates(self.pool, self.validation, self._recipe.text_field, None)
        order = sorted(range(len(candidates.ids)), key=lambda i: short_digest(candidates.ids[i]))
        sample = np.zeros(len(order), dtype=bool)
        sample[order[: round(share * len(order))]] = True
        num_tokens = _share(fraction, int(self.pool.num_tokens[sample].sum()))
        shutil.rmtree(directory, ignore_errors=True)  # of a choice that was interrupted
        files = tuple(map(str, write_selected(self.pool, sample, directory / "sample")))
        self._select(directory / "run", {**arm.select, "num_tokens": num_tokens, "pool": files})
        distil(DistilConfig(run=directory / "run", out=directory / "scorer"))
        scores = read_scorer(directory / "scorer").scores(candidates.pool_texts).astype(np.float64)
        return take(scores, candidates, num_tokens=self.budget(fraction))

    def with_features(self, arm: Arm) -> tuple[Path, float]:
        """Run `select` with all that the arm looks at, or return such a run that is complete.

        Arms with the same sketch share one, and what none of them looks at is not computed. A path that is walked in a
        way of its own has a run of its own.

        Returns:
            its directory, and the seconds that what the arm looks at took.
        """
        walk = self._recipe.walk_of(arm, lambda: self._told_apart)
        sketch = {name: value for name, value in arm.select.items() if name not in SOLVING_FIELDS}
        parts = {}
        if "gradients" in self._recipe.needs_of(arm):
            alone = {"objective": "descent", "objective_options": WITHOUT_SIGNS, "relax_budget": True}
            parts["gradients"] = {**sketch, **alone, "num_samples": 1}
        defining = sketch
        # One document is chosen there, for which constraints of the choice that is wanted are not meant.
        any_choice = {name: value for name, value in arm.select.items() if name not in declared(ConstraintsConfig)}
        any_choice |= {"num_samples": 1, "relax_budget": True}
        if walk is not None and walk.paths == "none":
            parts["signs"] = any_choice
        elif walk is not None:
            parts[f"path-{_key(walk.defining)}"] = any_choice
            if walk != self._recipe.usual_walk:
                defining = {**sketch, "walk": walk.defining}
        if arm.chooser is not None:  # the weights of the recipe's own model are in the scenario's name
            defining = {**defining, "weights": Checkpoint(arm.chooser).weights_fingerprint()}
        directory = self.directory / f"select-{_key(defining)}"
        for part, options in parts.items():
            if not RunDir(directory).is_finished or not _has(directory, part):
                what = {"gradients": part, "signs": "signs of damage"}.get(part, "losses along the path")
                self._note(f"{self._scenario.name}: computing {what}, for arm {arm.name}")
                with _adding_seconds(directory, part):
                    self._select(directory, options)
        return directory, sum(_seconds(directory, part) for part in parts)

    def _select(self, directory: Path, options: Mapping[str, Any]) -> None:
        given = {"model": self._recipe.model, "pool": self._scenario.pool, **self._recipe.select, **options}
        with showing(Silent()):
            select(
                validation=self._scenario.validation,
                out=directory,
                overwrite=True,
                **{**self._recipe.fields, "prompt_field": self._prompt_field, **given},
            )

    @cached_property
    def _told_apart(self) -> float | None:
        return told_apart(self.pool, self.validation)

    @cached_property
    def _prompt_field(self) -> Names | None:
        """The recipe's, where documents to choose by have it: `select` refuses a field that it never sees."""
        corpora = (self.pool, self.validation)
        return self._recipe.prompt_field if any(map(self._has_prompts, corpora)) else None

    def _has_prompts(self, corpus: Corpus) -> bool:
        names = self._recipe.prompt_field or ()
        seen = corpus.fields_seen or {}
        return any(seen.get(name) for name in ((names,) if isinstance(names, str) else names))

    def _evidence(self, arm: Arm) -> Evidence:
        """Return losses and embeddings; the path is walked on the validation set alone."""
        device = {name: value for name, value in self._recipe.select.items() if name == "device"}
        options = arm.options if BASELINES[str(arm.baseline)].needs_losses else {}
        directory = self.directory / (f"evidence-{_key(options)}" if options else "evidence")
        return Evidence(
            directory=directory,
            checkpoint=self._checkpoint,
            pool=self.pool,
            validation=self.validation,
            files=(self._scenario.pool, self._scenario.validation),
            options={**self._recipe.fields, **device},
            walk=PathConfig(**{"walk_replay": 0.0, "read_order": False, **options, **device}),
            window=self._window,
            note=lambda text: self._note(f"{self._scenario.name}: {text}"),
        )

    @cached_property
    def validation(self) -> Corpus:
        """M documents that selection sees."""
        return self._read("validation", self._scenario.validation)

    def _read(self, role: str, patterns: tuple[str, ...]) -> Corpus:
        return prepare(
            expand(patterns, role, TokenLayout.of(self._checkpoint.vocab_size, self._checkpoint.separator)),
            role=role,
            fields=self._recipe.read_fields,
            load_tokenizer=self._checkpoint.load_tokenizer,
            tokenizer_fingerprint=self._checkpoint.tokenizer_fingerprint(),
            vocab_size=self._checkpoint.vocab_size,
            max_length=self._window,
            directory=self.directory / "corpus" / role,
        )


def _share(fraction: float, num_tokens: int) -> int:
    return max(2, round(fraction * num_tokens))


def _key(options: Mapping[str, Any]) -> str:
    return short_hash(json.dumps(options, sort_keys=True), 4)


@contextmanager
def _adding_seconds(directory: Path, part: str) -> Iterator[None]:
    """Count what is done inside to the seconds of a part of the directory, also if it is interrupted."""
    started, before, whole = time.monotonic(), _seconds(directory, part), False
    try:
        yield
        whole = True
    finally:
        path = _seconds_path(directory, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, {"seconds": before + time.monotonic() - started, "whole": whole})


def _seconds(directory: Path, part: str) -> float:
    return float(_recorded(directory, part)["seconds"])


def _has(directory: Path, part: str) -> bool:
    return bool(_recorded(directory, part)["whole"])


def _recorded(directory: Path, part: str) -> dict[str, Any]:
    return {"seconds": 0.0, "whole": False} | (_kept(_seconds_path(directory, part)) or {})


def _kept(record: Path) -> dict[str, Any] | None:
    """Read a record of ours; None where there is none."""
    try:
        return read_record(record)
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise InputError(
            subject=str(record), must="be as it was written", got=f"but it {error}", do="remove it: it is made again"
        ) from error


def _seconds_path(directory: Path, part: str) -> Path:
    return directory.with_name(f"{directory.name}.{part}.json")  # beside it: inside it would be a stranger to `select`
