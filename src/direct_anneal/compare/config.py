"""The recipe of a comparison: a YAML file, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from direct_anneal.baselines import BASELINES, DuplicateMethod
from direct_anneal.config.objective import Likeness
from direct_anneal.data import Fields, Names
from direct_anneal.errors import InputError
from direct_anneal.io.id_lists import read_lines
from direct_anneal.io.records import RecordError
from direct_anneal.io.settings import read_yaml
from direct_anneal.path import PathConfig
from direct_anneal.selection import SOLVING_FIELDS, SelectConfig, walk_of
from direct_anneal.train import AnnealConfig

WHOLE_POOL = "whole-pool"
BEFORE = "before"  # the arm of the checkpoint itself
GUARD = 0.02  # bits a byte that others may lose

# Options that are the comparison's to set.
_SET_HERE = {
    "select": {"model", "pool", "validation", "out", "num_samples", "num_tokens", "fraction", "overwrite"},
    "anneal": {"model", "data", "out", "num_tokens", "overwrite", "seed", "mix", "mix_share"},
    "path": {"device", "paths", "num_clusters", "walk_replay"},
}
_FIELDS = ("text_field", "id_field", "domain_field")
_SCENARIO_FILES = ("pool", "validation", "held_out")
_LONGEST_NAME = 100  # bytes: names become parts of file names, with more behind them


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A pool, what selection sees of the target, and what nobody sees: files, directories or globs each.

    Attributes:
        name: for the results.
        target: domains of the held-out documents that the model should get better at.
        aside: domains of the held-out documents that are scored, and count neither as the target nor as others: the
            target's own text in another form, for one.
        choices: JSONL file of items {"prompt", "answers", "right"}, for the accuracy; none where left out.
    """

    name: str
    pool: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    target: tuple[str, ...]
    aside: tuple[str, ...] = ()
    choices: str | None = None

    def others(self, domains: Iterable[str]) -> list[str]:
        """Return the held-out domains that show what is forgotten: neither the target's nor set aside."""
        return sorted(set(domains) - set(self.target) - set(self.aside))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to choose.

    Attributes:
        name: for the results.
        baseline: one of the baselines, or "whole-pool"; None where `select` or `ids` choose.
        ids: documents of the pool, best first, chosen by whatever means; as many as fit are taken.
        options: settings of a baseline: `num_clusters` of a cluster histogram, `num_nearest` of similar embeddings;
            where losses along a path are needed, options of `PathConfig`.
        deduplicate: "exact" or "minhash": a baseline chooses among what is left.
        select: options of `select` beside the recipe's common ones; for a baseline on gradients those of its gradients,
            such as Adam's state. Without a baseline `model` may be among them: another checkpoint, often a smaller
            one, which then chooses in place of the recipe's. It chooses as large a part of the tokens as its own
            tokenizer counts; by the recipe's that may be a little less, and never is more.
        distil: share of the pool's documents that `select` chooses from, by a hash of their ids; what it found there is
            distilled into a scorer on n-grams, whose scores choose from the whole pool. None: from the whole at once.
    """

    name: str
    baseline: str | None = None
    ids: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    deduplicate: DuplicateMethod | None = None
    select: Mapping[str, Any] = field(default_factory=dict)
    distil: float | None = None

    @property
    def needs_gradients(self) -> bool:
        """True if gradients of pool and validation set have to be made for it."""
        if self.ids or self.baseline == WHOLE_POOL:
            return False
        return self.baseline is None or BASELINES[self.baseline].needs_gradients

    @property
    def chooser(self) -> str | None:
        """The checkpoint that chooses, where it is not the one that is annealed."""
        return self.select.get("model")

    @property
    def is_seeded(self) -> bool:
        """True if another seed gives another choice."""
        return self.baseline not in (None, WHOLE_POOL) and BASELINES[str(self.baseline)].is_seeded


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A comparison, in full.

    Attributes:
        model: checkpoint directory: the onset of annealing.
        model_name: for the results; the directory's name where left out.
        reference: the arm that the others are compared with.
        current: the arm that is in use now, which verdicts are also given against; none where left out.
        guard: bits a byte that others may lose for an arm to be adopted.
        seeds: of what is random in a choice, and of the order of training. What `select` chooses depends on the seed
            of its sketch instead, which is an option of `select`.
        fractions: of the pool's tokens, chosen.
        epochs: tokens of a training run, in units of the tokens chosen; the same number for every arm.
        tokens: tokens of a training run as a share of the pool's instead, so that all fractions train equally long and
            differ in how often a chosen document is seen.
        replay: shares of the training tokens that are random documents of the pool, not chosen ones; every arm is run
            at each, on the same number of tokens.
        select, anneal: options common to all arms, by the names that the commands have for them.
        threads: of a run. Results depend on it in their last digits, so that it is part of the recipe.
        text_field, id_field, domain_field: names in the documents' records; of several, the first that a record has.
        prompt_field: the same of what precedes the text and is not predicted, in validation and held-out documents.
    """

    model: str
    scenarios: tuple[Scenario, ...]
    arms: tuple[Arm, ...]
    model_name: str = ""
    reference: str = "random"
    current: str | None = None
    guard: float = GUARD
    seeds: tuple[int, ...] = (0, 1, 2)
    fractions: tuple[float, ...] = (0.2,)
    epochs: float = 2.0
    tokens: float | None = None
    replay: tuple[float, ...] = (0.0,)
    select: Mapping[str, Any] = field(default_factory=dict)
    anneal: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    text_field: Names = "text"
    id_field: Names = "id"
    domain_field: Names = "domain"
    prompt_field: Names | None = None

    def training_tokens(self, budget: int, fraction: float) -> int:
        """Return tokens of a training run on `budget` tokens chosen, a `fraction` of the pool's."""
        return round(self.epochs * budget if self.tokens is None else self.tokens * budget / fraction)

    def select_options(self, arm: Arm) -> dict[str, Any]:
        """Return the options of `select` that an arm's choice depends on, defaults included; empty without gradients.

        Raises:
            InputError: an option cannot be.
        """
        if not arm.needs_gradients:
            return {}
        config = self._select_config(arm)
        of_gradients = arm.baseline is not None
        return {k: v for k, v in config.defining.items() if not (of_gradients and k in SOLVING_FIELDS)}

    def needs_of(self, arm: Arm) -> frozenset[str]:
        """Return columns of the documents that an arm's `select` looks at, as objectives name them; a baseline,
        gradients.
        """
        return frozenset({"gradients"}) if arm.baseline is not None else self._select_config(arm).needs

    def walk_of(self, arm: Arm, told_apart: Likeness | None = None) -> PathConfig | None:
        """Return how the path is walked whose losses an arm's `select` looks at; None where it looks at none.

        Args:
            told_apart: the pool's likeness to the target, where there is a pool.
        """
        return None if arm.baseline is not None else walk_of(self._select_config(arm), told_apart)

    @property
    def usual_walk(self) -> PathConfig:
        """The walk of an arm that says nothing of walks: all of these share one."""
        walk = self.walk_of(Arm(name="path", select={"objective": "path"}))
        assert walk is not None
        return walk

    def _select_config(self, arm: Arm) -> SelectConfig:
        given = {"model": self.model, **self.select, **arm.select}
        return SelectConfig(pool=("-",), validation=("-",), out="-", num_tokens=2, **given)

    @property
    def fields(self) -> dict[str, Any]:
        """The three names of fields, as options."""
        return {name: getattr(self, name) for name in _FIELDS}

    @property
    def read_fields(self) -> Fields:
        """The names of fields, as a corpus is read by."""
        return Fields(text=self.text_field, id=self.id_field, domain=self.domain_field, prompt=self.prompt_field)


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        InputError: it cannot be read, or something in it cannot be; says which part and what to do.
    """
    try:
        content = read_yaml(Path(path))
    except (OSError, RecordError) as error:
        raise InputError(
            subject="a recipe", must="be a YAML file", got=f"but {path}: {' '.join(str(error).split())}"
        ) from error
    content = _mapping(content, "the recipe", {each.name for each in fields(Recipe)})
    for name in ("model", "scenarios", "arms"):
        if content.get(name, {}) == {}:
            raise InputError(
                subject="a recipe",
                must=f"have {name!r}",
                got=f"but {path} has none",
                do="see the example in docs/anneal.md",
            )
    if content.get("tokens") is not None and "epochs" in content:
        raise InputError(
            subject="a recipe", must="have 'tokens' or 'epochs'", got="but has both", do="either says how long to train"
        )
    content["scenarios"] = tuple(
        _scenario(name, given) for name, given in _named(content["scenarios"], "scenarios").items()
    )
    content["arms"] = tuple(_arm(name, given) for name, given in _named(content["arms"], "arms").items())
    for name, kind in (("seeds", int), ("fractions", float), ("replay", float)):
        if name in content:
            content[name] = _numbers(content[name], name, kind)
    for command, config in (("select", SelectConfig), ("anneal", AnnealConfig)):
        content[command] = _options(content.get(command) or {}, command, config, command)
    recipe = Recipe(**content)
    _check(recipe)
    return recipe


def _scenario(name: str, given: Any) -> Scenario:
    parts = _mapping(given, f"scenario {name}", {each.name for each in fields(Scenario)} - {"name"})
    missing = [part for part in (*_SCENARIO_FILES, "target") if not parts.get(part)]
    if missing:
        raise InputError(
            subject=f"scenario {name}", must=f"name its {', '.join(missing)}", do="files, and for the target domains"
        )
    choices = parts.pop("choices", None)
    if choices is not None and not isinstance(choices, str):
        raise InputError(subject=f"scenario {name}: choices", must="be the path of a JSONL file", got=repr(choices))
    texts = {part: _texts(value, f"scenario {name}: {part}") for part, value in parts.items()}
    if shared := set(texts["target"]) & set(texts.get("aside", ())):
        raise InputError(
            subject=f"scenario {name}: aside",
            must="leave out the target's domains",
            got=", ".join(sorted(shared)),
            do="a domain is the target, set aside, or one of the others",
        )
    return Scenario(name=name, choices=choices, **texts)


def _arm(name: str, given: Any) -> Arm:
    parts = _mapping(given, f"arm {name}", {"baseline", "ids", "deduplicate", "select", "distil", "options"})
    if not {"baseline", "ids", "select"} & parts.keys() or {"baseline", "ids"} <= parts.keys():
        raise InputError(
            subject=f"arm {name}",
            must="have 'baseline', 'ids' or 'select'",
            got=f"but has {', '.join(parts) or 'nothing'}",
        )
    share = parts.get("distil")
    if share is not None and ({"baseline", "ids"} & parts.keys() or not (_is_number(share) and 0 < share <= 1)):
        raise InputError(
            subject=f"arm {name}: 'distil'", must="be a share in (0, 1] and go with 'select'", got=f"{share!r}"
        )
    if "ids" in parts:
        parts["ids"] = _ids(parts["ids"], name)
    if "baseline" not in parts:
        if "deduplicate" in parts:
            raise InputError(f"arm {name}: 'deduplicate' goes with baselines; give select a pool without duplicates")
    elif parts["baseline"] not in (*BASELINES, WHOLE_POOL):
        raise InputError(subject=f"arm {name}: baseline", must=f"be one of {', '.join((*BASELINES, WHOLE_POOL))}")
    if parts.get("deduplicate") not in (None, "exact", "minhash"):
        raise InputError(
            subject=f"arm {name}: deduplicate", must="be exact or minhash", got=f"{parts['deduplicate']!r}"
        )
    parts["options"] = _baseline_options(parts, name)
    may_name = {"model"} if "baseline" not in parts else set()
    parts["select"] = _options(parts.get("select") or {}, f"arm {name}", SelectConfig, "select", may_name)
    arm = Arm(name=name, **parts)
    if arm.select and not arm.needs_gradients:
        raise InputError(
            f"arm {name}: {arm.baseline or 'ids'} needs no gradients, so that options of select mean nothing to it"
        )
    return arm


def _baseline_options(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of an arm's baseline, checked."""
    if "options" not in parts:
        return {}
    where, baseline = f"arm {name}: options", BASELINES.get(str(parts.get("baseline")))
    if baseline is None:
        raise InputError(f"arm {name}: 'options' goes with baselines")
    if baseline.needs_losses:
        given = _mapping(parts["options"], where, {each.name for each in fields(PathConfig)} - _SET_HERE["path"])
        PathConfig(**given)  # which checks them
        return given
    given = _mapping(parts["options"], where, set(baseline.counts))
    for option, value in given.items():
        if type(value) is not int or value < 1:
            raise InputError(subject=f"{where}: {option}", must="be a whole number of at least 1", got=repr(value))
    return given


def _ids(given: Any, name: str) -> tuple[str, ...]:
    """Return the lines of a file."""
    try:
        ids = tuple(read_lines(given))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            subject=f"arm {name}: ids", must="be a text file of ids, one a line", got=f"but {given}: {error}"
        ) from error
    if not ids:
        raise InputError(subject=f"arm {name}: ids", must="list at least one document", got=f"but {given} is empty")
    return ids


def _options(given: Any, where: str, config: type, command: str, beside: Set[str] = frozenset()) -> dict[str, Any]:
    known = {each.name for each in fields(config)} - _SET_HERE[command] - set(_FIELDS) | beside
    return _mapping(given, f"{where}: options of {command}", known - ({"epochs"} if command == "anneal" else set()))


def _check(recipe: Recipe) -> None:
    """Check the parts against each other."""
    names = [arm.name for arm in recipe.arms]
    if recipe.reference not in names:
        raise InputError(
            subject="reference", must=f"be one of the arms ({', '.join(names)})", got=f"{recipe.reference!r}"
        )
    if recipe.current is not None and recipe.current not in names:
        raise InputError(subject="current", must=f"be one of the arms ({', '.join(names)})", got=repr(recipe.current))
    if not isinstance(recipe.model_name, str):
        raise InputError(subject="model_name", must="be a text", got=repr(recipe.model_name), do="put it into quotes")
    if not _is_number(recipe.guard) or recipe.guard < 0:
        raise InputError(subject="guard", must="be at least 0 bits a byte", got=repr(recipe.guard))
    if BEFORE in names:
        raise InputError(f"no arm may be called {BEFORE!r}: that is the checkpoint before annealing")
    seeds, fractions = recipe.seeds, recipe.fractions
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise InputError(subject="seeds", must="lie in [0, 2³²), each once", got=str(list(seeds)))
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError(subject="fractions", must="lie in (0, 1], each once", got=str(list(fractions)))
    if not _is_number(recipe.epochs) or recipe.epochs <= 0:
        raise InputError(subject="epochs", must="be above 0", got=f"{recipe.epochs!r}")
    if recipe.tokens is not None and not (_is_number(recipe.tokens) and recipe.tokens > 0):
        raise InputError(subject="tokens", must="be above 0, as a share of the pool's tokens", got=repr(recipe.tokens))
    shares = recipe.replay
    if not shares or len(set(shares)) < len(shares) or not all(0 <= share < 1 for share in shares):
        raise InputError(subject="replay", must="be shares in [0, 1), each once", got=list(shares))
    if type(recipe.threads) is not int or recipe.threads < 1:
        raise InputError(subject="threads", must="be a whole number of at least 1", got=f"{recipe.threads!r}")
    if "learning_rate" not in recipe.anneal:
        raise InputError(subject="anneal", must="have a learning_rate", got="none")
    # The commands' own checks, before hours of work and not in their midst.
    AnnealConfig(model=recipe.model, data=("-",), out="-", num_tokens=1, **recipe.fields, **recipe.anneal)
    for arm in recipe.arms:
        recipe.select_options(arm)


def _is_number(given: Any) -> bool:
    """True of a finite number; YAML has .nan, .inf and true as well."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _named(given: Any, where: str) -> dict[str, Any]:
    """Return parts by names that can be parts of file names."""
    parts = _mapping(given, where)
    for name in parts:
        if (
            name.strip(" .") != name
            or not 0 < len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
            or not name.isprintable()
            or set(name) & set("/\\")
        ):
            raise InputError(
                subject=f"a name in {where}",
                must=f"have 1 to {_LONGEST_NAME} bytes, without slashes, line ends, or dots and spaces at its ends",
                got=f"{name!r:.60}",
                do="files are called by it",
            )
    return parts


def _mapping(given: Any, where: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise InputError(subject=str(where), must="be a mapping of names", got=f"{given!r:.60}")
    unknown = sorted(set(given) - known) if known is not None else []
    if unknown:
        raise InputError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known or ()))}")
    return dict(given)


def _texts(given: Any, where: str) -> tuple[str, ...]:
    values = given if isinstance(given, list) else [given]
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(subject=str(where), must="be a text or a list of texts", got=f"{given!r:.60}")
    return tuple(values)


def _numbers(given: Any, where: str, kind: type) -> tuple[Any, ...]:
    values = given if isinstance(given, list) else [given]
    allowed = (int,) if kind is int else (int, float)
    if not all(isinstance(value, allowed) and not isinstance(value, bool) for value in values):
        raise InputError(
            subject=str(where), must=f"be {('whole ' if kind is int else '')}numbers", got=f"{given!r:.60}"
        )
    return tuple(kind(value) for value in values)
