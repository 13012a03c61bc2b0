"""A recipe from a finished `select` run: is its way of choosing worth its place?

Half of the validation documents are seen by the arms, the other half is scored, so that no arm is judged on what it
chose by. A sample of the pool stays out of every arm's reach and shows what is forgotten. Beside the run's own options
stand the objectives that it showed beside its own, random documents, which are the reference, and the whole pool.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from direct_anneal.compare.pipeline import take_place
from direct_anneal.config.names import corpus_name
from direct_anneal.config.objective import BUILT_IN, named, objective_of
from direct_anneal.config.objective_options import OBJECTIVE_FIELDS
from direct_anneal.config.select import SHARED_BESIDE
from direct_anneal.data import Corpus, Fields, TokenLayout, expand, prepare, texts_at
from direct_anneal.errors import InputError, option
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import hashed_order
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.path import PathConfig
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection import SelectConfig
from direct_anneal.train.pipeline import load_optimizer_state

PresetName = Literal["quick", "standard"]

SELECTION = "selection"  # the arm of the run's own options
TARGET = "target"  # domain of the validation documents
PROMPT = "prompt"  # field of the prompts
OPTIMIZER = "optimizer.pt"
_RATE = 3e-4  # where the checkpoint says nothing of its own
_FEWEST_VALIDATION = 8
# Options of a run that say where and how, not what is chosen, or that the comparison sets itself. A run that allowed a
# checkpoint's own code does not allow it here.
_NOT_OF_AN_ARM = {
    *("model", "revision", "subfolder", "trust_remote_code", "max_length", "device", "batch_tokens"),
    *("pool", "validation", "retain", "retain_floor", "text_field", "id_field", "domain_field", "prompt_field"),
    *("num_samples", "num_tokens", "fraction", "replay", "force_in", "force_out"),
    *("floors", "ceilings", "quota_unit"),
    *("out", "overwrite", "features", "engine", "workers", "ray_address", "beside", "frontier"),
}
_OF_OBJECTIVE = {"objective", "objective_options", *OBJECTIVE_FIELDS}


@dataclass(frozen=True)
class Preset:
    """The amount of runs.

    Attributes:
        pool: documents to choose from at most, a random sample of the run's.
        general: documents of the pool that show what is forgotten.
        seeds, replay: as in a recipe.
    """

    pool: int
    general: int
    seeds: tuple[int, ...]
    replay: tuple[float, ...]


PRESETS: dict[PresetName, Preset] = {
    "quick": Preset(pool=2000, general=200, seeds=(0, 1, 2), replay=(0.0, 0.5)),
    "standard": Preset(pool=20_000, general=1000, seeds=(0, 1, 2, 3, 4), replay=(0.0, 0.25, 0.5, 0.7)),
}


def write_recipe(run: Path, preset: PresetName, out: Path) -> Path:
    """Write OUT/recipe.yaml and its documents from a finished run of `select`; the same run gives the same bytes.

    Text that is scored is in no part that arms see, also where the run's documents have it twice.

    Raises:
        InputError: there is no finished run, its documents are no text, or there are too few of them; `out` is another
            command's; or the recipe there is another one, edited by hand perhaps.
    """
    manifest = RunDir.open(run).manifest
    take_place(out)
    asked: dict[str, Any] = manifest["config"]
    size = PRESETS[preset]
    checkpoint = Checkpoint(asked["model"], revision=asked["revision"], subfolder=asked["subfolder"])
    names = Fields(**{role: asked[f"{role}_field"] for role in ("text", "id", "domain", "prompt")})
    files = out / "documents"
    documents = {}
    for role in ("pool", "validation"):
        corpus = prepare(
            expand(tuple(asked[role]), role, TokenLayout.of(checkpoint.vocab_size, checkpoint.separator)),
            role=role,
            fields=names,
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=asked["max_length"],
            directory=files / "corpus" / role,
        )
        most = size.pool + size.general if role == "pool" else corpus.num_samples
        documents[role] = _records(corpus, names, most)
    validation, pool = documents["validation"], documents["pool"]
    if len(validation) < _FEWEST_VALIDATION:
        raise InputError(
            subject="the run's validation set",
            must=f"have at least {_FEWEST_VALIDATION} documents, of which half are scored",
            got=f"but has {len(validation)}",
            do="write a recipe by hand, with held-out documents of your own",
        )
    seen, scored = validation[::2], [{**record, "domain": TARGET} for record in validation[1::2]]
    count = min(size.general, len(pool) // 5)
    general = [{**record, "domain": _general(record["domain"])} for record in pool[:count]]
    if not general:
        raise InputError(subject="the run's pool", must="have at least 5 documents", got=f"but has {len(pool)}")
    held_out = scored + general
    hidden = {record["text"] for record in held_out}
    parts = {
        "pool": [record for record in pool[count:] if record["text"] not in hidden],
        "validation": [record for record in seen if record["text"] not in hidden],
        "held_out": held_out,
    }
    for role in ("pool", "validation"):
        if not parts[role]:
            raise InputError(
                subject=f"the run's {corpus_name(role)}",
                must="have text that is not scored",
                got="but all of it is repeated",
                do="write a recipe by hand, with held-out documents of your own",
            )
    quotas = _quotas(manifest, Counter(record["domain"] for record in parts["pool"]))
    scenario = {role: [str(files / f"{role}.jsonl")] for role in parts}
    content: dict[str, Any] = {
        "model": str(checkpoint.directory),
        "scenarios": {run.resolve().name: {**scenario, "target": [TARGET]}},
        "arms": {
            "random": {"baseline": "random"},
            SELECTION: {"select": _options_of_arm(asked) | quotas},
            **{name: {"select": _options_beside(name, asked) | quotas} for name in _beside(asked)},
            "whole-pool": {"baseline": "whole-pool"},
        },
        "seeds": list(size.seeds),
        "fractions": [_fraction(manifest)],
        "replay": list(size.replay),
        "select": {"max_length": asked["max_length"], "device": asked["device"]},
        "anneal": {**_annealing(checkpoint), "device": asked["device"]},
    }
    if names.prompt:
        content["prompt_field"] = PROMPT
    path = out / "recipe.yaml"
    # What arms share is written out for each, and not as YAML's references: people edit it.
    text = yaml.safe_dump(_as_recorded(content), sort_keys=False)
    if path.exists() and path.read_bytes() != text.encode():
        raise InputError(
            subject=str(path),
            must="be as it is written from this run and preset",
            got="but it is another recipe, or was edited",
            do=f"to run it, say compare {path} {option('out')} {out}; or choose another {option('out')}",
        )
    for role, records in parts.items():
        _write(files / f"{role}.jsonl", records)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
    return path


def _records(corpus: Corpus, names: Fields, most: int) -> list[dict[str, Any]]:
    """Read at most so many documents, in the order of hashes of their ids."""
    ids, domains = corpus.index["id"].to_pylist(), corpus.index["domain"].to_pylist()
    order = hashed_order(ids)[:most].tolist()
    texts = texts_at(corpus, order, names.text)
    prompts = texts_at(corpus, order, names.prompt) if names.prompt else {}
    if lacking := next((ids[i] for i in order if texts[i] is None), None):
        raise InputError(
            subject="documents of the run",
            must="have their text, to be divided anew",
            got=f"but {lacking} has tokens alone",
            do="write a recipe by hand, with files of tokens",
        )
    return [
        {"id": ids[i], "domain": domains[i], "text": texts[i], **({PROMPT: prompts[i]} if prompts.get(i) else {})}
        for i in order
    ]


def _general(domain: str) -> str:
    return f"{domain} (pool)" if domain == TARGET else domain


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one object a line. A file that is right is left alone: its time of change is part of what goes on."""
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _fraction(manifest: dict[str, Any]) -> float:
    """Return the share of the pool's tokens that the run chose."""
    composition = manifest["composition"]["domains"]
    chosen, pool = (
        sum(int(domain[role]) for domain in composition.values()) for role in ("selected_tokens", "pool_tokens")
    )
    return round(min(1.0, max(chosen / pool, 1e-4)), 4)


def _options_of_arm(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the run's options that its choice depends on, but for those that name documents or are their defaults."""
    plain = _as_recorded(SelectConfig(model="-", pool=("-",), validation=("-",), out="-", num_samples=1).in_full)
    return {
        name: value
        for name, value in asked.items()
        if name not in _NOT_OF_AN_ARM and name in plain and value != plain[name]
    }


def _as_recorded(options: dict[str, Any]) -> dict[str, Any]:
    """Return options in the form that a run's record gives them back in: lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(options))
    return found


def _beside(asked: dict[str, Any]) -> list[str]:
    """Return objectives that a run showed beside its own: of a plugin's, whose code is not run here, none."""
    return [name for name in asked["beside"] if name in BUILT_IN and name != asked["objective"]]


def _options_beside(name: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an arm that chooses by another objective, where a run showed that one beside its own."""
    plain = _as_recorded(objective_of(name, {}, {}, asked["curvature"]).options())
    shared = {**asked, **(asked["objective_options"] or {})}
    counting = {*SHARED_BESIDE, *(each.name for each in fields(PathConfig))} - named(name).not_beside
    changed = {
        option: shared[option]
        for option in plain
        if option in counting and shared.get(option) is not None and shared[option] != plain[option]
    }
    kept = {option: value for option, value in _options_of_arm(asked).items() if option not in _OF_OBJECTIVE}
    given = {option: value for option, value in changed.items() if option in OBJECTIVE_FIELDS}
    own = {option: value for option, value in changed.items() if option not in OBJECTIVE_FIELDS}
    return {**kept, "objective": name, **given, **({"objective_options": own} if own else {})}


def _quotas(manifest: dict[str, Any], domains: Mapping[str, int]) -> dict[str, Any]:
    """Return floors and ceilings of an arm, which chooses by tokens from a sample of the run's pool.

    Numbers become smaller as the pool does. Shares of documents become numbers of them, since an arm does not know
    beforehand how many it chooses; shares of tokens stay. Floors are rounded down and ceilings up. Domains that the
    sample lacks are left out.

    Args:
        domains: documents of the arm's pool.
    """
    asked = manifest["config"]
    if not asked["floors"] and not asked["ceilings"]:
        return {}
    unit = asked["quota_unit"] or ("samples" if asked["num_tokens"] is None else "tokens")
    smaller = min(1.0, sum(domains.values()) / manifest["corpora"]["pool"]["documents"])

    def counted(amount: float, rounded: Callable[[float], int]) -> float:
        is_share = isinstance(amount, float)
        if is_share and unit == "tokens":
            return amount
        return rounded((amount * manifest["num_selected"] if is_share else amount) * smaller)

    return {
        side: {name: counted(amount, rounded) for name, amount in asked[side].items() if name in domains}
        for side, rounded in (("floors", math.floor), ("ceilings", math.ceil))
    } | {"quota_unit": unit}


def _annealing(checkpoint: Checkpoint) -> dict[str, Any]:
    """Rate and moments of the stable phase where the checkpoint has them."""
    if not (checkpoint.directory / OPTIMIZER).exists():
        return {"learning_rate": _RATE, "optimizer_state": "fresh"}
    groups = load_optimizer_state(checkpoint.directory).get("param_groups", [])
    rate = max((float(group.get("lr", 0.0)) for group in groups), default=0.0)
    return {"learning_rate": rate if 0 < rate < 10 else _RATE, "optimizer_state": "kept"}
