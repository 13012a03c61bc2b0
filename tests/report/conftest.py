from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from direct_anneal.compare import report as comparison_report
from direct_anneal.compare.config import BEFORE, Arm, Recipe, Scenario
from direct_anneal.report import write_report
from direct_anneal.selection import Run
from selection.pools import chosen, write_validation, write_world
from selection.tiny import documents, write_jsonl

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "closing": "</pre></svg></style></body><img src=http://example.org/x onerror=alert(1)>",
    "quotes": "\"'><b onmouseover=alert(1) \"' a `b` {{ 7 * 7 }} {% raw %} &amp; &#60;script&#62;",
    "control": "a\x00b\x07c\x1b[31m red \r\n and a bell",
    "override": "‮evil txt.exe⁦ isolated",
    "dollars": "$\\frac{1}{2}$ and $x^{$ and \\$",
    "unicode": "﷽ 👩‍👩‍👧 ￿ ﻿ é",
    "long": "x" * 20_000,
}

ARMS = ("random", "direct", "cosine")


def reported(run: Run) -> Run:
    """The same with its report, as the command writes it."""
    write_report(run.out)
    return run


@pytest.fixture(scope="session")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished selection with its report and frontier, of a pool in every format. To be read, not changed."""
    directory = write_world(tmp_path_factory.mktemp("reported"))
    return reported(chosen(checkpoint, directory, directory / "out", frontier=(0.9, 1e-4, 2.0), beside="matching"))


@pytest.fixture(scope="session")
def hostile(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same of a pool whose texts, ids and domains would like to be more than texts; all of them are shown."""
    directory = tmp_path_factory.mktemp("hostile")
    odd = [
        {"id": f"{name} {text[:40]}", "domain": f"{name} {text[:60]}", "text": text} for name, text in HOSTILE.items()
    ]
    (directory / "pool").mkdir()
    write_jsonl(directory / "pool" / "$<i>\"pool'$.jsonl", [*odd, *documents(4, seed=5)])
    write_validation(directory / "validation.jsonl")
    return reported(chosen(checkpoint, directory, directory / "out", fraction=0.5, frontier=(0.9, 2.0)))


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with its report. To be read, not changed."""
    directory = tmp_path_factory.mktemp("compared")
    write_comparison(directory)
    comparison_report.write_report(directory)
    return directory


def write_comparison(
    directory: Path,
    *,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    domains: Sequence[str] = ("code", "prose", "tables"),
) -> None:
    """The lines of finished runs, made up: "direct" gains on the target, the first domain, and loses elsewhere."""
    rng = np.random.default_rng(4)
    scenario = Scenario(name="one", pool=("p",), validation=("v",), held_out=("h",), target=(domains[0],))
    recipe = Recipe(
        model="ckpt/tiny",
        scenarios=(scenario,),
        arms=tuple(Arm(name=name, baseline="random") for name in arms),
        seeds=tuple(seeds),
        fractions=(0.1, 0.2),
    )
    comparison_report.keep_recipe(recipe, directory)
    keys = [(BEFORE, 0, 0.0)] + [(arm, seed, fraction) for seed in seeds for fraction in (0.1, 0.2) for arm in arms]
    lines = []
    for arm, seed, fraction in keys:
        gains = {BEFORE: (-0.5, -0.5), "direct": (0.2, -0.2), "cosine": (0.1, 0.1)}.get(arm, (0.0, 0.0))
        bpb = [2.0 - gains[place > 0] + 0.01 * rng.random() for place in range(len(domains))]
        line = {"scenario": "one", "model": "tiny", "target": [domains[0]], "arm": arm, "seed": seed}
        line |= {"fraction": fraction, "inputs": "0", "target_bpb": bpb[0], "macro_bpb": float(np.mean(bpb))}
        line |= {"domain_bpb": dict(zip(domains, bpb, strict=True)), "training_seconds": 2.0, "commit": "abc"}
        if arm != BEFORE:
            line |= {"selection_seconds": 1.0, "chosen_domains": {name: 3 + i for i, name in enumerate(domains)}}
        lines.append(json.dumps(line) + "\n")
    (directory / "runs.jsonl").write_text("".join(lines))
