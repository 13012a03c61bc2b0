"""Choices of the package itself on a scenario of the grid, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenario import FRACTION, lines_of, open_corpus, slug

from direct_anneal.baselines import BASELINES, Candidates
from direct_anneal.compare.config import Arm, Recipe, Scenario
from direct_anneal.compare.scenario import Choices

# By name, the options of `select`.
PRODUCT_ARMS: dict[str, dict[str, Any]] = {
    "path": {"objective": "path"},
    "blend": {"objective": "blend"},
    "matching": {"objective": "matching"},
    "energy": {"objective": "energy", "budget_ratio": 0.1, "relax_budget": True},
}


def choose(carry: Path, work: Path, name: str, device: str, arms: list[str]) -> None:
    """Write WORK/choices/NAME.npz: the rows that the package's arms choose, and scores of its baselines."""
    path = work / "choices" / f"{slug(name)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = dict(np.load(path)) if path.exists() else {}

    def keep(key: str, values: NDArray[Any], seconds: float) -> None:
        found[key], found[f"{key}:seconds"] = values, np.array(seconds)
        with path.with_suffix(".part").open("wb") as stream:
            np.savez(stream, **found)
        path.with_suffix(".part").replace(path)

    pool, validation = (open_corpus(carry, work, name, role, "texts") for role in ("pool", "validation"))
    for baseline in ("quality-classifier", "dsir"):
        started = time.monotonic()
        scores = BASELINES[baseline].score(Candidates(pool, validation, "text", None), 0)
        keep(f"score:{baseline}", scores, time.monotonic() - started)

    scenario = json.loads((carry / "scenarios.json").read_text())[name]
    files = {role: tuple(str(carry / path) for path in scenario[role]) for role in ("pool", "validation", "held_out")}
    target = Scenario(name=slug(name), target=tuple(scenario["target"]), **files)
    options = {"device": device, **({"batch_tokens": 16384} if device != "cpu" else {})}
    choosing = [Arm(name=arm, select=PRODUCT_ARMS[arm]) for arm in arms]
    influence = Arm(name="influence", baseline="influence")
    recipe = Recipe(model=str(carry / "model"), scenarios=(target,), arms=(*choosing, influence), select=options)
    choices = Choices(recipe, target, work / "scenarios" / slug(name), print)
    ids = np.array(choices.pool.index["id"].to_pylist(), dtype=object)
    started = time.monotonic()
    features, _ = choices.with_features(influence)
    gradients = choices.gradients(features)
    candidates = Candidates(choices.pool, choices.validation, "text", gradients)
    keep("score:influence", BASELINES["influence"].score(candidates, 0), time.monotonic() - started)
    for arm in choosing:
        try:
            choice = choices.choice(arm, FRACTION, 0, "grid")
        except Exception as error:  # one arm that fails must not take the others along
            print(f"{name}: {arm.name} failed: {error!r}", flush=True)
            continue
        chosen = {json.loads(line)["id"] for file in choice.files for line in lines_of(Path(file))}
        keep(f"rows:{arm.name}", np.flatnonzero([i in chosen for i in ids]), choice.seconds)
    keep("done", np.array(1), 0.0)


def begin_choosers(
    script: Path, carry: Path, work: Path, names: list[str], device: str, at_once: int
) -> dict[str, subprocess.Popen[bytes]]:
    """A process for each scenario, as many at once as there are cores for."""
    waiting, running = list(names), dict[str, subprocess.Popen[bytes]]()

    def begin(name: str) -> None:
        log = (work / f"{slug(name)}.log").open("w")
        arms = list(PRODUCT_ARMS) if name.startswith("test/") else [arm for arm in PRODUCT_ARMS if arm != "energy"]
        command = [sys.executable, script, "choose", "--carry", carry, "--work", work, "--name", name]
        command += ["--device", device, "--arms", *arms]
        running[name] = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def feed() -> None:
        while waiting:
            if sum(process.poll() is None for process in running.values()) < at_once:
                begin(waiting.pop(0))
            else:
                time.sleep(0.2)

    threading.Thread(target=feed, daemon=True).start()
    return running
