"""Arms that choose from a sample and distil: what they choose is what the scorer says of the whole pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compare.test_compare import recipe_of
from direct_anneal.compare.scenario import Choices
from direct_anneal.distill import read_scorer
from direct_anneal.errors import InputError
from selection.tiny import SKETCH_SIZE, documents, write_checkpoint, write_jsonl


def test_the_scorers_best_of_the_whole_pool_are_chosen(tmp_path: Path) -> None:
    for role, count in (("pool", 120), ("validation", 12), ("held_out", 6)):
        write_jsonl(tmp_path / f"{role}.jsonl", documents(count, seed=count, prefix=role[0]))
    files = {role: str(tmp_path / f"{role}.jsonl") for role in ("pool", "validation", "held_out")}
    content = {
        "model": str(write_checkpoint(tmp_path / "model")),
        "scenarios": {"one": {**files, "target": ["prose"]}},
        "arms": {
            "random": {"baseline": "random"},
            "distilled": {"distil": 0.5, "select": {"objective": "descent", "relax_budget": True}},
        },
        "fractions": [0.25],
        "select": {"sketch_size": SKETCH_SIZE},
        "anneal": {"learning_rate": 0.01},
    }
    recipe = recipe_of(content, tmp_path)
    arm = recipe.arms[1]
    choices = Choices(recipe, recipe.scenarios[0], tmp_path / "work", lambda _: None)
    choice = choices.choice(arm, 0.25, 0, "hash")
    [file] = choice.files
    chosen = [json.loads(line)["text"] for line in Path(file).read_text().splitlines()]
    work = tmp_path / "work" / "choices" / "distilled-0.25-any-hash.distilled"
    assert len((work / "sample" / "selected.jsonl").read_text().splitlines()) == 60
    scorer = read_scorer(work / "scorer")
    everything = [json.loads(line)["text"] for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    best = sorted(scorer.scores(everything).tolist(), reverse=True)
    # All but what fills the budget up are the very best.
    assert sum(score >= best[len(chosen) - 1] for score in scorer.scores(chosen).tolist()) >= len(chosen) - 3
    assert choices.choice(arm, 0.25, 0, "hash") == choice


@pytest.mark.parametrize(
    "arm", [{"distil": 0.0, "select": {}}, {"distil": True, "select": {}}, {"distil": 0.5, "baseline": "dsir"}]
)
def test_other_shares_are_refused(arm: dict[str, object], tmp_path: Path) -> None:
    content = {
        "model": "m",
        "scenarios": {"one": {"pool": "a", "validation": "b", "held_out": "c", "target": "d"}},
        "arms": {"a": arm},
    }
    with pytest.raises(InputError, match="'distil' must be a share in"):
        recipe_of(content, tmp_path)
