"""Write the scenarios' documents, and the recipe that `direct-anneal compare` runs on them.

    python recipes/bakeoff/scenarios.py --data DATA [--size 1m|5m|30m|100m] [--cache DIR] [--device cuda]
    direct-anneal compare CACHE/bakeoff/bakeoff-1m.yaml --out CACHE/bakeoff/runs-1m

The bake-off's scenarios are `mixed` (all domains; a few of them are the target), `other` (the same with another
target), `noisy` (mixed, and a quarter of the pool damaged) and `clean` (curated domains; the target is all of them).
Models are scored on held-out text of every domain in each of them, so that forgetting shows. The development recipe
has the same four with other target domains, pool passages and held-out text: defaults are sought there, so that the
bake-off judges them on what they were not made for. Two more recipes are of its `mixed`: `ablation` takes the default
apart, `validation` gives it fewer validation documents.

The domains math_word, qa_science and qa_commonsense are train splits of benchmarks: they are in the pools as any other
text is, and never a target.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import yaml
from splits import Role, domains, passages, write_jsonl
from stable_phase import DEFAULT_CACHE, PRECISION, SIZES

TARGETS = {
    "test": ("code_python", "science_textbook", "forum_qa"),
    "development": ("math_latex", "legal", "dialogue"),
}
OTHER_TARGETS = {
    "test": ("books", "web", "synthetic_textbook"),
    "development": ("tech_docs", "wiki", "gov_blog"),
}
CURATED = ("books", "wiki", "science_textbook", "synthetic_textbook", "math_latex", "code_python")
SCENARIOS = ("mixed", "other", "noisy", "clean")
VALIDATION_PASSAGES, HELD_OUT_PASSAGES = 600, 40  # the latter for each domain
GPU_BATCH_TOKENS = 16384  # of gradients; several processes share the GPU, so that none may take what it finds
DAMAGED_SHARE = 0.25
OPTIMIZER = "optimizer.pt"  # in an arm: the stable checkpoint's own
KINDS = ("shuffled", "random", "boilerplate", "duplicated")  # of damage, equal shares

# `direct-paper`: the paper's constants, or the nearest feasible budget.
ARMS: dict[str, dict[str, Any]] = {
    "random": {"baseline": "random"},
    "direct": {"select": {}},
    "quality-classifier": {"baseline": "quality-classifier"},
    "gradient-cosine": {"baseline": "gradient-cosine"},
    "gradient-cosine-adam": {"baseline": "gradient-cosine", "select": {"optimizer": OPTIMIZER}},
    "dsir": {"baseline": "dsir"},
    "direct-paper": {"select": {"objective": "energy", "budget_ratio": 0.1, "relax_budget": True}},
}
# The rest, for a machine with more time: they are added to what has been run already.
MORE_ARMS: dict[str, dict[str, Any]] = {
    "low-perplexity": {"baseline": "low-perplexity"},
    "middle-perplexity": {"baseline": "middle-perplexity"},
    "whole-pool": {"baseline": "whole-pool"},
    "random-deduplicated": {"baseline": "random", "deduplicate": "minhash"},
    "dsir-deduplicated": {"baseline": "dsir", "deduplicate": "minhash"},
    "less": {"baseline": "less"},
    "influence": {"baseline": "influence"},
}

# What each part of the default contributes: the default but for one thing, on a development scenario.
ABLATION: dict[str, dict[str, Any]] = {
    "random": {"baseline": "random"},
    "quality-classifier": {"baseline": "quality-classifier"},
    **{
        name: {"select": options}
        for name, options in {
            "direct": {},
            "no n-grams": {"ngram_weight": 0.0},
            "no quadratic term": {"objective": "descent"},
            "no sign": {"objective": "energy", "gradients": "unit", "budget_ratio": "none"},
            "no filter": {"filter": "none"},
            "flat directions alone": {"filter": "flat"},
            "raw gradients": {"gradients": "raw"},
            "curvature of validation": {"filter_curvature": "validation"},
            "curvature of pool": {"filter_curvature": "pool"},
            "mc-fisher": {"curvature": "mc-fisher"},
            "ggn": {"curvature": "ggn"},
            "hessian": {"curvature": "hessian"},
            "budget 1.0": {"budget_ratio": 1.0, "relax_budget": True},
            "budget 1.0, cross-fitted": {
                "budget_ratio": 1.0,
                "budget_reference": "validation",
                "relax_budget": True,
            },
            "damping 0.1": {"damping": 0.1},
            "damping 0.001": {"damping": 0.001},
            "target scale 2": {"target_scale": 2.0},
            "target scale 32": {"target_scale": 32.0},
            "sketch 512": {"sketch_size": 512},
            "sketch 1024": {"sketch_size": 1024},
            "sketch 4096": {"sketch_size": 4096},
        }.items()
    },
}
VALIDATION_SIZES = (30, 100, 300)  # beside the scenario's own


def pool(data: Path, names: list[str], salt: str, size: int, *, damaged: bool) -> list[dict[str, Any]]:
    """Passages of the domains, the same number of each as far as they reach, and damaged ones among them if asked."""
    count = round(size * (1 - DAMAGED_SHARE if damaged else 1))
    found = [passages(data, name, "pool", count, salt) for name in names]
    # Small domains give all they have, and the others share what is left.
    share = max(size for size in range(1, count + 1) if sum(min(size, len(part)) for part in found) <= count)
    records = [record for part in found for record in part[:share]]
    return records + (damage(records, size - count, salt) if damaged else [])


def damage(records: list[dict[str, Any]], count: int, salt: str) -> list[dict[str, Any]]:
    """Damaged copies of random passages, each kind in equal number."""
    rng = random.Random(salt)
    vocabulary = sorted({word for record in records[:500] for word in record["text"].split()})
    boilerplate = [" ".join(rng.choices(vocabulary, k=40)) for _ in range(4)]
    made = []
    for number in range(count):
        kind, original = KINDS[number % len(KINDS)], rng.choice(records)
        words = original["text"].split(" ")
        if kind == "shuffled":
            rng.shuffle(words)
        elif kind == "random":
            words = rng.choices(vocabulary, k=len(words))
        elif kind == "boilerplate":
            words = [*(rng.choice(boilerplate).split(" ") * 3), *words[:10]]
        made.append({"id": f"damaged/{kind}/{number}", "domain": kind, "text": " ".join(words)})
    return made


def write_scenarios(data: Path, directory: Path, held_out: Role, pool_size: int) -> dict[str, dict[str, Any]]:
    """The scenarios of one recipe, as the recipe names them."""
    everything = domains(data)
    salt = held_out
    # Pools of another size have a directory of their own.
    files = directory / (held_out if pool_size == SIZES["1m"].pool else f"{held_out}-{pool_size}")
    shared = [record for name in everything for record in passages(data, name, held_out, HELD_OUT_PASSAGES, salt)]
    held_out_path = write_jsonl(files / "held_out.jsonl", shared)
    scenarios = {}
    for name in SCENARIOS:
        names = list(CURATED) if name == "clean" else everything
        target = {"clean": CURATED, "other": OTHER_TARGETS[held_out]}.get(name, TARGETS[held_out])
        each = VALIDATION_PASSAGES // len(target)
        validation = [record for of in target for record in passages(data, of, "validation", each, salt)]
        documents = pool(data, names, salt, pool_size, damaged=name == "noisy")
        scenarios[name] = {
            "pool": [str(write_jsonl(files / f"{name}_pool.jsonl", documents))],
            "validation": [str(write_jsonl(files / f"{name}_validation.jsonl", validation))],
            "held_out": [str(held_out_path)],
            "target": list(target),
        }
        print(f"{held_out}: {name}, {len(documents)} passages to choose from, {len(validation)} of the target")
    return scenarios


def with_fewer(scenario: dict[str, Any], count: int) -> dict[str, Any]:
    """The scenario with every so many of its validation passages, `count` of all domains together."""
    [path] = map(Path, scenario["validation"])
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    records = [json.loads(lines[i * len(lines) // count]) for i in range(count)]
    return {**scenario, "validation": [str(write_jsonl(path.with_stem(f"{path.stem}-{count}"), records))]}


def recipe(
    model: Path,
    size: str,
    scenarios: dict[str, Any],
    arms: dict[str, Any],
    seeds: int,
    fractions: list[float],
    device: str,
) -> dict[str, Any]:
    """What `direct-anneal compare` is given."""
    on_device = {} if device == "cpu" else {"device": device, "dtype": PRECISION[device]}
    return {
        "model": str(model),
        "model_name": size,
        "scenarios": scenarios,
        "arms": arms,
        "seeds": list(range(seeds)),
        "fractions": fractions,
        "epochs": 2.0,
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
    parser.add_argument("--data", type=Path, required=True, help="directory with corpus/*.jsonl.zst")
    parser.add_argument("--size", choices=SIZES, default="1m", help="of the stable checkpoint")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", choices=PRECISION, default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--all-arms", action="store_true", help="the slower comparison, with every baseline")
    arguments = parser.parse_args()
    directory = arguments.cache / "bakeoff"
    model = arguments.cache / f"stable-{arguments.size}"
    arms = {**ARMS, **(MORE_ARMS if arguments.all_arms else {})}
    for arm in arms.values():
        if arm.get("select", {}).get("optimizer") == OPTIMIZER:
            arm["select"] = {**arm["select"], "optimizer": str(model / OPTIMIZER)}
    seeds, device, size = arguments.seeds, arguments.device, arguments.size
    roles: tuple[tuple[str, Role], ...] = (("bakeoff", "test"), ("development", "development"))
    for name, held_out in roles:
        scenarios = write_scenarios(arguments.data, directory, held_out, SIZES[size].pool)
        content = recipe(model, size, scenarios, arms, seeds, [0.1, 0.2], device)
        print(write_recipe(directory / f"{name}-{size}.yaml", content))
    mixed = scenarios["mixed"]
    content = recipe(model, size, {"mixed": mixed}, ABLATION, seeds, [0.1], device)
    print(write_recipe(directory / f"ablation-{size}.yaml", content))
    sizes = {f"mixed, {count}": with_fewer(mixed, count) for count in VALIDATION_SIZES}
    few = {name: ABLATION[name] for name in ("random", "quality-classifier", "no n-grams", "direct")}
    print(write_recipe(directory / f"validation-{size}.yaml", recipe(model, size, sizes, few, seeds, [0.1], device)))


if __name__ == "__main__":
    main()
