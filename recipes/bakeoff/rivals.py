"""A sweep over the settings of the rivals: each arm of a recipe of `compare` is a rival at one setting.

    python recipes/bakeoff/rivals.py development.yaml > sweep.yaml && direct-anneal compare sweep.yaml --out runs/sweep

The recipe that is given lends the model, the scenarios and the training; they should be development scenarios, which
nothing is reported on. Of the arms only the reference stays.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

RATES, PASSES = (3e-4, 1e-3, 3e-3), (1.0, 3.0)


def arms() -> dict[str, dict[str, Any]]:
    """Rivals that have a setting, at each of its values; without options at the default."""
    found: dict[str, dict[str, Any]] = {}
    for name in ("conditional-loss", "target-path"):
        found[name] = {"baseline": name}  # rate and depth by folds
        for rate in RATES:
            for passes in PASSES:
                walk = {"learning_rates": [rate], "num_folds": 0, "max_passes": passes}
                found[f"{name} {rate:g} {passes:g}"] = {"baseline": name, "options": walk}
    for name, setting, values in (
        ("cluster-histogram", "num_clusters", (16, 64, 256)),
        ("embedding-similarity", "num_nearest", (1, 10, 100)),
    ):
        for value in values:
            found[f"{name} {value}"] = {"baseline": name, "options": {setting: value}}
    return found


def sweep(recipe: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The same scenarios without replay, under all arms."""
    reference = recipe.get("reference", "random")
    return recipe | {"arms": {reference: recipe["arms"][reference], **arms()}, "seeds": seeds, "replay": [0.0]}


if __name__ == "__main__":
    content = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    yaml.safe_dump(sweep(content, [0]), sys.stdout, sort_keys=False)
