"""Recipes written from a run of `select`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from direct_anneal.compare import read_recipe
from direct_anneal.compare.presets import TARGET, _options_beside, _options_of_arm, _quotas, write_recipe
from direct_anneal.errors import InputError
from direct_anneal.run.run_dir import RunDir
from direct_anneal.selection import select, select_again
from selection.tiny import SKETCH_SIZE, documents, write_jsonl


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    write_jsonl(directory / "pool.jsonl", documents(40, seed=31, prefix="p"))
    write_jsonl(directory / "validation.jsonl", documents(12, seed=32, prefix="v", domains=("prose",)))
    out = directory / "out"
    select(
        model=str(checkpoint),
        pool=str(directory / "pool.jsonl"),
        validation=str(directory / "validation.jsonl"),
        out=out,
        fraction=0.25,
        objective="descent",
        sketch_size=SKETCH_SIZE,
    )
    return out


def test_a_recipe_of_a_run_can_be_read_and_keeps_what_is_scored_out_of_reach(run: Path, tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(run, "quick", tmp_path))
    (scenario,) = recipe.scenarios
    parts = {
        role: [json.loads(line) for path in getattr(scenario, role) for line in Path(path).read_text().splitlines()]
        for role in ("pool", "validation", "held_out")
    }
    ids = {role: {record["id"] for record in records} for role, records in parts.items()}
    assert not ids["held_out"] & (ids["pool"] | ids["validation"])
    assert len(ids["pool"] | ids["validation"] | ids["held_out"]) == 52
    assert {record["domain"] for record in parts["held_out"]} > {TARGET}
    assert scenario.target == (TARGET,)
    arms = {arm.name: arm for arm in recipe.arms}
    assert list(arms) == ["random", "selection", "whole-pool"]
    assert arms["selection"].select["objective"] == "descent"
    assert arms["selection"].select["sketch_size"] == SKETCH_SIZE
    table = RunDir.open(run).evidence(["num_tokens", "selected"]).to_pydict()
    chosen = sum(length for length, selected in zip(*table.values(), strict=True) if selected)
    assert recipe.fractions == (pytest.approx(chosen / sum(table["num_tokens"]), abs=1e-4),)
    again = tmp_path / "recipe.yaml"
    before = again.read_bytes()
    write_recipe(run, "quick", tmp_path)
    assert again.read_bytes() == before


def test_an_edited_recipe_and_a_runs_own_directory_are_left_alone(run: Path, tmp_path: Path) -> None:
    path = write_recipe(run, "quick", tmp_path / "out")
    edited = path.read_text() + "guard: 0.05\n"
    path.write_text(edited)
    with pytest.raises(InputError, match="or was edited: to run it, say compare"):
        write_recipe(run, "quick", tmp_path / "out")
    assert path.read_text() == edited
    with pytest.raises(InputError, match="holds other files"):
        write_recipe(run, "quick", run)
    assert not (run / "documents").exists()


def test_text_that_a_run_has_twice_is_scored_or_seen(checkpoint: Path, tmp_path: Path) -> None:
    pool = documents(40, seed=31, prefix="p")
    target = documents(12, seed=32, prefix="v", domains=("prose",))
    write_jsonl(tmp_path / "pool.jsonl", [*pool, *({**record, "id": f"again-{record['id']}"} for record in pool)])
    write_jsonl(tmp_path / "validation.jsonl", [*target, *({**record, "id": f"w{record['id']}"} for record in target)])
    files = {role: str(tmp_path / f"{role}.jsonl") for role in ("pool", "validation")}
    select(
        model=str(checkpoint),
        out=tmp_path / "run",
        fraction=0.25,
        objective="descent",
        sketch_size=SKETCH_SIZE,
        **files,
    )
    (scenario,) = read_recipe(write_recipe(tmp_path / "run", "quick", tmp_path / "out")).scenarios
    texts = {
        role: {json.loads(line)["text"] for line in Path(getattr(scenario, role)[0]).read_text().splitlines()}
        for role in ("pool", "validation", "held_out")
    }
    assert texts["pool"]
    assert texts["validation"]
    assert not texts["held_out"] & (texts["pool"] | texts["validation"])


def test_what_a_run_showed_beside_its_own_objective_is_an_arm(run: Path, tmp_path: Path) -> None:
    select_again(run=run, out=tmp_path / "run", beside=("matching", "energy"), noise="centred", frontier=[0.5, 1.0])
    recipe = read_recipe(write_recipe(tmp_path / "run", "quick", tmp_path / "out"))
    arms = {arm.name: arm.select for arm in recipe.arms}
    assert list(arms) == ["random", "selection", "matching", "energy", "whole-pool"]
    assert {name: arms[name]["objective"] for name in ("matching", "energy")} == {
        "matching": "matching",
        "energy": "energy",
    }
    for name in ("selection", "matching", "energy"):
        assert arms[name]["noise"] == "centred"
        assert arms[name]["sketch_size"] == SKETCH_SIZE
        assert not {"beside", "frontier"} & arms[name].keys()  # shown, not chosen by


def test_floors_and_ceilings_in_documents_stay_so(run: Path, tmp_path: Path) -> None:
    limits = {"floors": ["code=0.3"], "ceilings": ["table=1"]}
    select_again(run=run, out=tmp_path / "run", beside=("matching",), **limits)
    write_recipe(tmp_path / "run", "quick", tmp_path / "out")
    recipe = read_recipe(tmp_path / "out" / "recipe.yaml")
    assert "&" not in (tmp_path / "out" / "recipe.yaml").read_text()  # each arm has its own, for people to edit
    for arm in (arm.select for arm in recipe.arms if arm.name in ("selection", "matching")):
        # Ten documents were chosen from 40, of which an arm sees 32.
        assert (arm["floors"], arm["ceilings"], arm["quota_unit"]) == ({"code": 2}, {"table": 1}, "samples")
    tokens = {"config": {"floors": {"a": 0.5, "b": 90, "gone": 1}, "ceilings": {}, "quota_unit": "tokens"}}
    manifest = {**tokens, "corpora": {"pool": {"documents": 40}}, "num_selected": 10}
    assert _quotas(manifest, {"a": 12, "b": 8}) == {
        "floors": {"a": 0.5, "b": 45},
        "ceilings": {},
        "quota_unit": "tokens",
    }


def test_a_walk_is_shared_by_objectives_of_the_path() -> None:
    options = {"learning_rates": [0.001], "min_order": 0.5, "max_passes": 3.0}
    asked = {"curvature": "empirical-fisher", "objective": "path", "objective_options": options, "seed": 3}
    assert _options_beside("blend", asked) == {
        "seed": 3,
        "objective": "blend",
        "objective_options": {"learning_rates": [0.001]},
    }
    assert _options_beside("matching", asked) == {"seed": 3, "objective": "matching"}


def test_the_prompts_of_a_benchmark_go_along(checkpoint: Path, tmp_path: Path) -> None:
    questions = [
        {**record, "question": f"q {number} ? "}
        for number, record in enumerate(documents(8, seed=34, prefix="v", domains=("prose",)))
    ]
    write_jsonl(tmp_path / "pool.jsonl", documents(20, seed=33, prefix="p"))
    write_jsonl(tmp_path / "questions.jsonl", questions)
    select(
        model=str(checkpoint),
        pool=str(tmp_path / "pool.jsonl"),
        validation=str(tmp_path / "questions.jsonl"),
        prompt_field="question",
        out=tmp_path / "run",
        fraction=0.25,
        objective="descent",
        sketch_size=SKETCH_SIZE,
    )
    recipe = read_recipe(write_recipe(tmp_path / "run", "quick", tmp_path / "out"))
    assert recipe.prompt_field == "prompt"
    (scenario,) = recipe.scenarios
    parts = {
        role: [json.loads(line) for path in getattr(scenario, role) for line in Path(path).read_text().splitlines()]
        for role in ("pool", "validation", "held_out")
    }
    asked = {record["id"]: record["question"] for record in questions}
    told = {record["id"]: record["prompt"] for part in parts.values() for record in part if "prompt" in record}
    assert told == asked


def test_a_checkpoints_own_code_is_not_allowed_by_a_run() -> None:
    """A run may come from a stranger."""
    assert _options_of_arm({"trust_remote_code": True, "elbow": 0.5}) == {"elbow": 0.5}


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run"):
        write_recipe(tmp_path, "quick", tmp_path / "out")
