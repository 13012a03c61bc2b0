"""Write the scenarios' documents, and the recipes that `direct-anneal compare` runs on them.

    python recipes/bakeoff/scenarios.py --data DATA [--size 1m|5m|30m|100m] [--cache DIR] [--device cuda]
    direct-anneal compare CACHE/bakeoff/test-1m.yaml --out CACHE/bakeoff/runs-1m

A smaller proof: `--passages 2000 --items 400 --held-out 20 --without-accuracy --scenarios science mixed --arms random
path --replay 0 0.5 --seeds 2`.
What distilling keeps: `--passages 6000 --items 400 --scenarios science --arms random blend distilled-2 distilled-5
distilled-20 --fraction 0.2 --replay 0 --seeds 3` (a 2 % sample must hold 50 documents).

Kinds of scenarios:

- domains: `mixed` (all domains; three of them are the target), `other` (three others), `noisy` (mixed, and damaged
  passages beside it);
- `clean`: curated domains, and the target is all of them;
- tasks: a benchmark's training split is the validation set, its test items are scored, and no text of question
  answering is in the pool; `noisy science` has a fifth of it damaged;
- `within`: the harder third of one domain, without a label that tells it apart.

Models are scored on the target and on held-out text of the other domains, so that forgetting shows. The development
recipe has scenarios of the same kinds with other targets, pool passages and held-out text: defaults are sought there.
`unique` varies how much of the pool is chosen at equal training tokens. What pool and test items share is measured,
and written to contamination.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from contamination import WORDS, overlap
from damage import damaged
from readability import grade
from splits import Role, domains, passages, write_jsonl
from stable_phase import DEFAULT_CACHE, PRECISION, SIZES
from tasks import ANSWERING, TASKS, choice_records, scored_records, validation_records

Record = dict[str, Any]

TARGETS = {
    "test": ("code_python", "science_textbook", "forum_qa"),
    "development": ("math_latex", "legal", "dialogue"),
}
OTHER_TARGETS = {
    "test": ("books", "web", "synthetic_textbook"),
    "development": ("tech_docs", "wiki", "gov_blog"),
}
CURATED = ("books", "wiki", "science_textbook", "synthetic_textbook", "math_latex", "code_python")
WITHIN = {"test": "wiki", "development": "gov_blog"}
NOISY_TASK = {"test": "science", "development": "sciq"}

VALIDATION_PASSAGES, HELD_OUT_PASSAGES = 600, 40  # the latter for each domain
HARD_SHARE = 1 / 3
DAMAGED_SHARE = {"domains": 0.25, "task": 0.2}
GPU_BATCH_TOKENS = 16384  # of gradients; several processes share the GPU, so that none may take what it finds
FRACTION, TOKENS = 0.1, 0.2  # chosen, and trained on: of the pool's tokens
REPLAY = (0.0, 0.25, 0.5, 0.7)
UNIQUE = (0.05, 0.1, 0.2, 0.5, 1.0)

ARMS: dict[str, dict[str, Any]] = {
    "random": {"baseline": "random"},
    "path": {"select": {"objective": "path"}},
    "blend": {"select": {"objective": "blend"}},
    "path-and-descent": {"select": {"objective": "blend", "objective_options": {"matching_below": 0}}},
    "without-replay": {"select": {"objective": "blend", "objective_options": {"walk_replay": 0}}},
    "descent-once": {"select": {"objective": "blend", "objective_options": {"descent_weight": 1}}},
    "matching": {"select": {"objective": "matching"}},
    "quality-classifier": {"baseline": "quality-classifier"},
    "influence": {"baseline": "influence"},
    "dsir": {"baseline": "dsir"},
    "conditional-loss": {"baseline": "conditional-loss"},
    "target-path": {"baseline": "target-path"},
    "cluster-histogram": {"baseline": "cluster-histogram", "options": {"num_clusters": 256}},
    "embedding-similarity": {"baseline": "embedding-similarity"},
    "whole-pool": {"baseline": "whole-pool"},
    "energy": {"select": {"objective": "energy", "budget_ratio": 0.1, "relax_budget": True}},
}
DISTILLED: dict[str, dict[str, Any]] = {  # of the default, from so many per cent of the pool
    f"distilled-{percent}": {"select": {"objective": "blend"}, "distil": percent / 100} for percent in (2, 5, 20)
}
LEADING = ("random", "path", "blend", "matching", "influence", "quality-classifier")


@dataclass(frozen=True)
class Documents:
    """Documents that a scenario is written from.

    Attributes:
        pool, validation, scored: records; `scored` are of the target.
        target: domains of `scored` that the model should get better at.
        aside: domains of `scored` that count neither as the target nor as others.
        forgetting: domains whose held-out text shows what is forgotten.
        choices: items with answers to choose from.
    """

    pool: list[Record]
    validation: list[Record]
    scored: list[Record]
    target: tuple[str, ...]
    forgetting: list[str]
    aside: tuple[str, ...] = ()
    choices: tuple[Record, ...] = ()


def pool_of(data: Path, names: list[str], salt: str, size: int, damaged_share: float = 0.0) -> list[Record]:
    """Passages of the domains, the same number of each as far as they reach, and damaged ones among them if asked."""
    count = round(size * (1 - damaged_share))
    found = [passages(data, name, "pool", count, salt) for name in names]
    # Small domains give all they have, and the others share what is left.
    share = max(size for size in range(1, count + 1) if sum(min(size, len(part)) for part in found) <= count)
    records = [record for part in found for record in part[:share]]
    return records + damaged(records, size - count if damaged_share else 0, salt)


def of_domains(data: Path, role: Role, size: int, target: tuple[str, ...], share: float = 0.0) -> Documents:
    """Whole domains of the pool as the target."""
    each = VALIDATION_PASSAGES // len(target)
    return Documents(
        pool=pool_of(data, domains(data), role, size, share),
        validation=[record for name in target for record in passages(data, name, "validation", each, role)],
        scored=[record for name in target for record in passages(data, name, role, HELD_OUT_PASSAGES, role)],
        target=target,
        forgetting=[name for name in domains(data) if name not in target],
    )


def of_curated(data: Path, role: Role, size: int) -> Documents:
    """Pool and target are one mixture: there is nothing to gain by choosing."""
    documents = of_domains(data, role, size, CURATED)
    return Documents(
        pool=pool_of(data, list(CURATED), role, size),
        validation=documents.validation,
        scored=documents.scored,
        target=CURATED,
        forgetting=documents.forgetting,
    )


def of_task(data: Path, role: Role, size: int, name: str, num_scored: int | None, share: float = 0.0) -> Documents:
    """A benchmark as the target, and no question answering in the pool."""
    task = TASKS[role][name]
    items, names = task.test(data)[:num_scored], [each for each in domains(data) if each not in ANSWERING]
    return Documents(
        pool=pool_of(data, names, role, size, share),
        validation=validation_records(task.validation(data), name),
        scored=scored_records(items, name),
        target=(name,),
        aside=(f"{name} (whole)",),
        forgetting=names,
        choices=tuple(choice_records(items)),
    )


def of_hard(data: Path, role: Role, size: int) -> Documents:
    """The harder third of one domain; documents say the domain alone."""
    name = WITHIN[role]
    pool = passages(data, name, "pool", size, role)
    bound = sorted(grade(record["text"]) for record in pool)[round(len(pool) * (1 - HARD_SHARE))]

    def hard(record: Record) -> bool:
        return grade(record["text"]) >= bound

    held_out = passages(data, name, role, 10 * HELD_OUT_PASSAGES, role)
    named = [{**record, "domain": f"{name} ({'hard' if hard(record) else 'easy'})"} for record in held_out]
    validation = [record for record in passages(data, name, "validation", size, role) if hard(record)]
    return Documents(
        pool=pool,
        validation=validation[:VALIDATION_PASSAGES],
        scored=named,
        target=(f"{name} (hard)",),
        forgetting=[each for each in domains(data) if each != name],
    )


def scenarios_of(data: Path, role: Role, size: int, num_scored: int | None) -> dict[str, Callable[[], Documents]]:
    """All of them by name, made when they are asked for; of benchmarks, at most `num_scored` items are scored."""
    noisy = NOISY_TASK[role]
    return {
        "mixed": lambda: of_domains(data, role, size, TARGETS[role]),
        "other": lambda: of_domains(data, role, size, OTHER_TARGETS[role]),
        "noisy": lambda: of_domains(data, role, size, TARGETS[role], DAMAGED_SHARE["domains"]),
        "clean": lambda: of_curated(data, role, size),
        **{name: (lambda name=name: of_task(data, role, size, name, num_scored)) for name in TASKS[role]},
        f"noisy {noisy}": lambda: of_task(data, role, size, noisy, num_scored, DAMAGED_SHARE["task"]),
        "within": lambda: of_hard(data, role, size),
    }


def write_scenarios(
    data: Path,
    directory: Path,
    role: Role,
    size: int,
    names: list[str] | None = None,
    num_scored: int | None = None,
    held_out: int = HELD_OUT_PASSAGES,
    accuracy: bool = True,
) -> dict[str, dict[str, Any]]:
    """Write the scenarios' files, and return them as a recipe names them.

    Args:
        size: passages of a pool.
        names: these scenarios alone.
        num_scored: items of a benchmark that are scored, at most.
        held_out: passages of each domain that shows what is forgotten.
        accuracy: score items with choices by accuracy, too.
    """
    files = directory / (role if size == SIZES["1m"].pool else f"{role}-{size}")
    made = scenarios_of(data, role, size, num_scored)
    written, shared = {}, {}
    for name in [name for name in made if not names or name in names]:
        documents = made[name]()
        slug = name.replace(" ", "-")
        others = [record for each in documents.forgetting for record in passages(data, each, role, held_out, role)]
        scenario: dict[str, Any] = {
            "pool": [str(write_jsonl(files / f"{slug}-pool.jsonl", documents.pool))],
            "validation": [str(write_jsonl(files / f"{slug}-validation.jsonl", documents.validation))],
            "held_out": [str(write_jsonl(files / f"{slug}-held-out.jsonl", documents.scored + others))],
            "target": list(documents.target),
        }
        if documents.aside:
            scenario["aside"] = list(documents.aside)
        if documents.choices and accuracy:
            scenario["choices"] = str(write_jsonl(files / f"{slug}-choices.jsonl", list(documents.choices)))
        written[name] = scenario
        scored = [record["text"] for record in documents.scored if "prompt" not in record]  # items stand there whole
        texts = [record["text"] for record in documents.pool]
        shared[name] = {f"{length} words": round(overlap(texts, scored, length), 4) for length in WORDS}
        print(
            f"{role}: {name}, {len(documents.pool)} passages to choose from, {len(documents.validation)} of the "
            f"target; of its {len(scored)} test texts the pool shares " + json.dumps(shared[name]),
            flush=True,
        )
    write_jsonl(files / "contamination.json", [shared])
    return written


def recipe(
    model: Path,
    size: str,
    scenarios: dict[str, Any],
    arms: dict[str, Any],
    *,
    seeds: int,
    device: str,
    fractions: tuple[float, ...] = (FRACTION,),
    replay: tuple[float, ...] = REPLAY,
) -> dict[str, Any]:
    """Recipe for `direct-anneal compare`."""
    on_device = {} if device == "cpu" else {"device": device, "dtype": PRECISION[device]}
    return {
        "model": str(model),
        "model_name": size,
        "scenarios": scenarios,
        "arms": arms,
        "seeds": list(range(seeds)),
        "fractions": list(fractions),
        "tokens": TOKENS,
        "replay": list(replay),
        "prompt_field": "prompt",
        "select": on_device and {**on_device, "batch_tokens": GPU_BATCH_TOKENS},
        "anneal": {
            "learning_rate": SIZES[size].rate,
            "schedule": "linear",
            "batch_size": SIZES[size].batch,
            "optimizer_state": "kept",
            **on_device,
        },
    }


def write_recipe(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with corpus/*.jsonl.zst and eval/*.jsonl")
    parser.add_argument("--size", choices=SIZES, default="1m", help="of the stable checkpoint")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", choices=PRECISION, default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--passages", type=int, help="to choose from (the size's own number)")
    parser.add_argument("--items", type=int, help="of a benchmark that are scored, at most")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_PASSAGES, help="of each other domain, to score")
    parser.add_argument("--without-accuracy", action="store_true", help="it is at chance where models are small")
    parser.add_argument("--scenarios", nargs="+", help="these alone, by name")
    parser.add_argument("--arms", nargs="+", choices=ARMS | DISTILLED, default=list(ARMS))
    parser.add_argument("--fraction", type=float, default=FRACTION, help="of the pool's tokens, chosen")
    parser.add_argument("--replay", nargs="+", type=float, default=list(REPLAY))
    arguments = parser.parse_args()
    directory, size = arguments.cache / "bakeoff", arguments.size
    passages_of_pool = arguments.passages or SIZES[size].pool
    model = arguments.cache / f"stable-{size}"
    roles: tuple[Role, ...] = ("test", "development")
    for role in roles:
        scenarios = write_scenarios(
            arguments.data,
            directory,
            role,
            passages_of_pool,
            arguments.scenarios,
            arguments.items,
            arguments.held_out,
            not arguments.without_accuracy,
        )
        content = recipe(
            model,
            size,
            scenarios,
            {name: (ARMS | DISTILLED)[name] for name in arguments.arms},
            seeds=arguments.seeds,
            device=arguments.device,
            fractions=(arguments.fraction,),
            replay=tuple(arguments.replay),
        )
        print(write_recipe(directory / f"{role}-{size}.yaml", content))
        leading = {name: ARMS[name] for name in LEADING}
        content = recipe(
            model,
            size,
            scenarios,
            leading,
            seeds=arguments.seeds,
            device=arguments.device,
            fractions=UNIQUE,
            replay=(0.0, 0.5),
        )
        print(write_recipe(directory / f"unique-{role}-{size}.yaml", content))


if __name__ == "__main__":
    main()
