"""Damage that a path leaves out: a quarter of a small pool of real text is damaged, in five ways; none is chosen."""

from __future__ import annotations

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

import pytest

from direct_anneal.demo import demo_model_path
from direct_anneal.selection import select_again, select_documents
from selection.tiny import evidence, write_jsonl

MODULES = (
    "argparse",
    "collections",
    "datetime",
    "functools",
    "inspect",
    "logging",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "urllib.parse",
    "zipfile",
)
KINDS = ("shuffled", "short", "random words", "loop", "notice")
EACH = 4  # a twentieth of the pool each
NOTICE = "All rights reserved. Terms of use apply. Please sign in or contact us about cookies on this site. Page "
# All but how the damaged are told apart; the bar is for what the default limits leave in.
QUICK: dict[str, Any] = {"learning_rates": (1e-3,), "num_folds": 0, "max_passes": 1.0}
OFF: dict[str, Any] = {"max_repeated": 1.0, "max_common": 1.0, "min_order": 1e-9}


def docstrings() -> list[str]:
    """Read docstrings of the standard library's functions and classes, in an order of our own."""
    found = set()
    for name in MODULES:
        for _, member in inspect.getmembers(importlib.import_module(name)):
            if (inspect.isfunction(member) or inspect.isclass(member)) and (text := inspect.getdoc(member)):
                found |= {" ".join(text.split())[:400]} if len(text) > 250 else set()
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts


def damaged(texts: list[str], rng: random.Random) -> list[dict[str, str]]:
    words = [word for text in texts for word in text.split()]
    rows = []
    for place in range(EACH):
        own = texts[place].split()
        phrase = " ".join(rng.sample(words, 12))
        made = {
            "shuffled": " ".join(rng.sample(own, len(own))),
            "short": " ".join(rng.sample(own[:12], min(12, len(own)))),
            "random words": " ".join(rng.choices(words, k=60)),
            "loop": " ".join(6 * [phrase]),
            "notice": 2 * NOTICE + str(place),
        }
        rows += [{"id": f"{kind}-{place}", "text": made[kind], "domain": kind} for kind in KINDS]
    return rows


@pytest.mark.parametrize("target", ["domain", "task"])
def test_no_kind_has_a_tenth_of_its_share(tmp_path: Path, target: str) -> None:
    texts, rng = docstrings(), random.Random(1)
    pool, validation = texts[: 15 * EACH], texts[15 * EACH :][:40]
    assert len(validation) == 40
    if target == "task":
        validation = [f"Question: what is {text.split()[0]}?\nAnswer: {text[:120]}" for text in validation]
    rows = [{"id": f"text-{place}", "text": text, "domain": "text"} for place, text in enumerate(pool)]
    write_jsonl(tmp_path / "pool.jsonl", rows + damaged(pool, rng))
    rows = [{"id": f"v-{place}", "text": text, "domain": "text"} for place, text in enumerate(validation)]
    write_jsonl(tmp_path / "validation.jsonl", rows)
    select_documents(
        model=demo_model_path(),
        pool=str(tmp_path / "pool.jsonl"),
        validation=str(tmp_path / "validation.jsonl"),
        out=tmp_path / "run",
        objective="path",
        objective_options={**QUICK, **OFF},
        fraction=0.3,
    )
    assert chosen_of(tmp_path / "run") > 0  # without limits some of it is
    select_again(tmp_path / "run", out=tmp_path / "limited", objective="path", objective_options=QUICK)
    assert chosen_of(tmp_path / "limited") == 0
    whole = evidence(tmp_path / "limited").to_pandas().query("domain == 'text'")
    assert (whole["order"] < 0.93).mean() < 0.03  # of what is whole, next to nothing is left out


def chosen_of(run: Path) -> int:
    """Damaged documents that were chosen; where a kind has a twentieth of the pool, one is above a tenth of that."""
    table = evidence(run)
    pairs = zip(table["domain"].to_pylist(), table["selected"].to_pylist(), strict=True)
    return sum(chosen for domain, chosen in pairs if domain in KINDS)
