"""Whole comparisons of tiny runs: complete, resumable line by line, the same with any number of workers."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from compare.slow_job import SlowJob
from direct_anneal.cli import main
from direct_anneal.compare import compare, pipeline, read_recipe
from direct_anneal.compare.config import BEFORE, Recipe
from direct_anneal.compare.report import write_report, write_results
from direct_anneal.errors import InputError
from direct_anneal.objectives import sketched
from direct_anneal.path import PathLosses
from direct_anneal.progress import PlainLines, Silent, showing
from direct_anneal.selection import select
from selection.tiny import CONTEXT, SKETCH_SIZE, chosen_ids, documents, write_checkpoint, write_jsonl

pytest.importorskip("accelerate", reason="annealing needs the extra 'anneal'")
pytest.importorskip("sklearn", reason="baselines on n-grams need the extra 'compare'")

Done = tuple[Recipe, Path, list[dict[str, Any]]]

UNTIMED = ("selection_seconds", "training_seconds")


def recipe_content(checkpoint: Path, directory: Path) -> dict[str, Any]:
    """A scenario, and an arm of each kind."""
    write_jsonl(directory / "pool.jsonl", documents(40, seed=31, prefix="p"))
    write_jsonl(directory / "validation.jsonl", documents(12, seed=32, prefix="v", domains=("prose",)))
    write_jsonl(directory / "held_out.jsonl", documents(15, seed=33, prefix="h"))
    (directory / "ids.txt").write_text("".join(f"p{number:03d}\n" for number in reversed(range(40))))
    files = {role: str(directory / f"{role}.jsonl") for role in ("pool", "validation", "held_out")}
    return {
        "model": str(checkpoint),
        "scenarios": {"one": {**files, "target": ["prose", "code"]}},
        "arms": {
            "random": {"baseline": "random"},
            "everything": {"baseline": "whole-pool"},
            "dsir": {"baseline": "dsir", "deduplicate": "minhash"},
            "cosine": {"baseline": "gradient-cosine"},
            "other-sketch": {"baseline": "less", "select": {"seed": 1}},
            "direct": {"select": {"objective": "descent"}},
            "by-another": {
                "select": {"model": str(write_checkpoint(directory / "another", seed=1)), "objective": "matching"}
            },
            "histogram": {"baseline": "cluster-histogram"},
            "by-hand": {"ids": str(directory / "ids.txt")},
        },
        "seeds": [0, 1],
        "fractions": [0.25],
        "select": {"sketch_size": SKETCH_SIZE, "relax_budget": True},
        "anneal": {"learning_rate": 0.01, "batch_size": 2, "max_length": 32},
    }


@pytest.fixture
def content(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    return recipe_content(checkpoint, tmp_path)


def recipe_of(content: dict[str, Any], directory: Path) -> Recipe:
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_recipe(path)


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in UNTIMED} for line in lines]


def file_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finished comparison. To be read, not changed."""
    directory = tmp_path_factory.mktemp("compared")
    recipe = recipe_of(recipe_content(checkpoint, directory), directory)
    return recipe, directory / "out", compare(recipe, directory / "out")


class Told(Silent):
    """Keeps what a stage is told."""

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None, items: Any = None) -> Iterator[Any]:
        self.total, self.amounts = total, list[int]()
        yield self.amounts.append


class TestRuns:
    def test_every_arm_seed_and_scenario_has_its_line(self, done: Done) -> None:
        _, out, lines = done
        places = {(line["scenario"], line["arm"], line["seed"]) for line in lines}
        arms = {
            "random",
            "everything",
            "dsir",
            "cosine",
            "other-sketch",
            "direct",
            "by-another",
            "histogram",
            "by-hand",
        }
        assert places == {("one", arm, seed) for arm in arms for seed in (0, 1)} | {("one", BEFORE, 0)}
        assert [{**line, "seal": None} for line in lines] == [{**line, "seal": None} for line in file_lines(out)]
        assert not list(out.glob("scenarios/*/runs/*"))

    def test_arms_are_trained_alike(self, done: Done) -> None:
        _, _, lines = done
        annealed = [line for line in lines if line["arm"] != BEFORE]
        assert len({line["trained_tokens"] for line in annealed}) == 1
        chosen = [line["num_tokens"] for line in annealed if line["arm"] != "everything"]
        assert max(chosen) <= annealed[0]["trained_tokens"] / 2
        assert min(chosen) > 0.9 * max(chosen)

    def test_sources_may_name_their_text_differently(self, content: dict[str, Any], tmp_path: Path) -> None:
        held_out = [{**record, "body": record.pop("text")} for record in documents(15, seed=33, prefix="h")]
        write_jsonl(tmp_path / "held_out.jsonl", held_out)
        content |= {"text_field": ["text", "body"], "seeds": [0]}
        content["arms"] = {name: content["arms"][name] for name in ("random", "dsir")}
        lines = compare(recipe_of(content, tmp_path), tmp_path / "out")
        assert [sorted(line["domain_bpb"]) for line in lines] == [["code", "prose", "table"]] * 3

    def test_another_model_chooses_what_select_chooses_with_it(self, done: Done, tmp_path: Path) -> None:
        recipe, out, _ = done
        [scenario], [fraction] = recipe.scenarios, recipe.fractions
        by = {arm.name: arm.select for arm in recipe.arms}["by-another"]
        given = {"pool": scenario.pool, "validation": scenario.validation, **recipe.select, **by}
        # Bytes are its tokens.
        num_bytes = sum(len(json.loads(line)["text"]) for line in Path(scenario.pool[0]).read_text().splitlines())
        select(out=tmp_path / "out", num_tokens=round(fraction * num_bytes), **given)
        (chosen,) = out.glob("scenarios/*/choices/by-another-*/selected.jsonl")
        assert {json.loads(line)["id"] for line in chosen.read_text().splitlines()} == chosen_ids(tmp_path / "out")

    def test_another_model_with_other_weights_makes_other_runs(self, content: dict[str, Any], tmp_path: Path) -> None:
        content |= {"seeds": [0], "arms": {name: content["arms"][name] for name in ("random", "by-another")}}
        recipe = recipe_of(content, tmp_path)
        compare(recipe, tmp_path / "out")
        write_checkpoint(tmp_path / "another", seed=2)
        with pytest.raises(InputError, match="by-another, seed 0 that was made by another"):
            compare(recipe, tmp_path / "out")

    def test_ids_are_taken_as_listed_as_long_as_they_fit(self, done: Done) -> None:
        _, out, _ = done
        (chosen,) = out.glob("scenarios/*/choices/by-hand-*/selected.jsonl")
        ids = {json.loads(line)["id"] for line in chosen.read_text().splitlines()}
        places = sorted(39 - int(name[1:]) for name in ids)
        assert places[:5] == [0, 1, 2, 3, 4]
        # From the first that does not fit on, shorter ones fill what is left.
        assert np.median(places) < 10

    def test_scores_are_those_of_their_domains(self, done: Done) -> None:
        for line in done[2]:
            by_domain = line["domain_bpb"]
            assert line["macro_bpb"] == pytest.approx(sum(by_domain.values()) / 3)
            assert line["target_bpb"] == pytest.approx(
                sum(by_domain[name] for name in line["target"]) / len(line["target"])
            )

    def test_a_choice_that_hangs_on_no_seed_is_made_once(self, done: Done) -> None:
        names = [path.parent.name for path in done[1].glob("scenarios/one-*/choices/*/choice.json")]
        counted = {
            arm: sum(name.startswith(f"{arm}-") for name in names) for arm in ("random", "dsir", "cosine", "direct")
        }
        assert counted == {"random": 2, "dsir": 2, "cosine": 1, "direct": 1}

    def test_gradients_are_made_once_for_all_arms_of_a_sketch(self, done: Done) -> None:
        """Those of the recipe's model with either seed, and those of another model."""
        assert len(list(done[1].glob("scenarios/one-*/select-*/features"))) == 3

    def test_it_goes_on_after_the_last_whole_line(
        self, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of the lines, and a half line: the file as a kill in the midst of writing leaves it."""
        recipe, out, lines = done
        again = tmp_path / "again"
        again.mkdir()
        kept = (out / "runs.jsonl").read_bytes().splitlines(keepends=True)[:7]
        (again / "runs.jsonl").write_bytes(b"".join(kept) + b'{"scenario": "two", "arm')
        runs = 0
        original = pipeline.run

        def counted(job: Any) -> dict[str, Any]:
            nonlocal runs
            runs += 1
            return original(job)

        monkeypatch.setattr(pipeline, "run", counted)
        told = Told()
        with showing(told):
            assert untimed(compare(recipe, again)) == untimed(lines)
        assert told.total == len(lines)
        assert told.amounts == [7] + [1] * (len(lines) - 7)
        assert runs == len(lines) - 7
        assert (again / "runs.jsonl").read_bytes().startswith(b"".join(kept))

    def test_workers_change_nothing_and_what_takes_long_is_told(self, done: Done, tmp_path: Path) -> None:
        recipe, _, lines = done
        few = replace(recipe, arms=tuple(arm for arm in recipe.arms if arm.name in ("random", "direct")), seeds=(0,))
        expected = [line for line in lines if line["arm"] in (BEFORE, "random", "direct") and line["seed"] == 0]
        told = io.StringIO()
        assert untimed(compare(few, tmp_path / "two", workers=2, progress=PlainLines(told))) == untimed(expected)
        assert told.getvalue().count("one: computing gradients, for arm direct") == 1

    def test_a_worker_ends_at_ctrl_c_without_a_word(self, capfd: pytest.CaptureFixture[str]) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=pipeline.begin_worker) as pool:
            interrupted = pool.submit(signal.raise_signal, signal.SIGINT)
            with pytest.raises(BrokenProcessPool):
                interrupted.result()
        assert capfd.readouterr().err == ""

    def test_a_changed_arm_is_not_taken_for_the_old_one(self, done: Done, checkpoint: Path, tmp_path: Path) -> None:
        _, out, _ = done
        content = yaml.safe_load((out.parent / "recipe.yaml").read_text())
        content["arms"]["direct"]["select"]["elbow"] = 0.5
        with pytest.raises(InputError, match="one, direct, seed 0 that was made by another recipe"):
            compare(recipe_of(content, tmp_path), out)

    def test_neither_is_one_under_other_defaults(self, done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe, out, _ = done
        monkeypatch.setattr(sketched, "DAMPING", 0.5)
        with pytest.raises(InputError, match="one, direct, seed 0 that was made by another recipe"):
            compare(recipe, out)

    def test_from_the_command_line(self, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = done
        assert main(["compare", str(out.parent / "recipe.yaml"), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert [line.split()[:3] for line in said.splitlines() if line.split()[:1] == ["direct"]] == [
            ["direct", "0%", "2"]
        ]
        assert said.index("before annealing") < said.index("Verdict") < said.index(" direct against random at 0%")
        assert said.splitlines()[-1] == f"Written to {out}: report.html, table.md, pareto.svg, runs.jsonl"
        assert "| direct | 2 |" in (out / "table.md").read_text()
        assert (out / "pareto.svg").read_text().startswith("<?xml")


class Deadly:
    """A job that ends the process it is sent to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_lost_worker_is_told_in_one_line() -> None:
    jobs: Any = iter([Deadly()])
    with pytest.raises(InputError, match=r"^a worker must not be ended from outside, .* with fewer "):
        list(pipeline._finished(jobs, 2))


def test_a_recipe_or_a_run_is_needed_and_not_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    for given in (out, ["recipe.yaml", "--from", "run", *out], ["recipe.yaml", "--preset", "standard", *out]):
        assert main(["compare", *given]) == 2
        said = capsys.readouterr().err
        assert "recipe" in said
        assert len(said.strip().splitlines()) == 1


def test_the_documented_recipe_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("doc-7\n")
    page = (Path(__file__).parents[2] / "docs" / "anneal.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.reference in {arm.name for arm in recipe.arms}


def test_replay_prompts_and_choices(content: dict[str, Any], tmp_path: Path) -> None:
    """Every arm at every replay share on the same tokens; a prompt is not predicted; the whole pool is run once."""
    records = documents(15, seed=33, prefix="h")
    asked = [{**record, "id": f"q{record['id']}", "domain": "asked", "prompt": "the sea "} for record in records[:4]]
    write_jsonl(tmp_path / "held_out.jsonl", records + asked)
    items = [{"prompt": "the ", "answers": ["sea", "zzzzqqqq"], "right": 0}] * 3
    write_jsonl(tmp_path / "items.jsonl", items)
    content["scenarios"]["one"] |= {"aside": ["asked"], "choices": str(tmp_path / "items.jsonl")}
    content |= {"seeds": [0], "replay": [0.0, 0.5], "tokens": 0.5, "fractions": [0.25, 0.5], "prompt_field": "prompt"}
    content["select"] = {"sketch_size": SKETCH_SIZE}
    walk = {"learning_rates": 1e-2, "max_passes": 1.0, "num_folds": 2}
    quick = {"objective": "path", "objective_options": walk}
    content["arms"] = {name: content["arms"][name] for name in ("random", "everything")} | {"path": {"select": quick}}
    out = tmp_path / "out"
    lines = compare(recipe_of(content, tmp_path), out)
    assert [path.name for path in out.glob("scenarios/*/select-*/features/*")] == ["pool-path"]  # no gradients for it
    places = sorted((line["arm"], line["fraction"], line["replay"]) for line in lines if line["arm"] != BEFORE)
    both = [(fraction, replay) for fraction in (0.25, 0.5) for replay in (0.0, 0.5)]
    of_each = [(arm, *place) for arm in ("path", "random") for place in both]
    assert places == [("everything", 0.25, 0.0), ("everything", 0.5, 0.0), *of_each]
    assert len({line["trained_tokens"] for line in lines if line["arm"] != BEFORE}) == 1
    for line in lines:
        others = [value for name, value in line["domain_bpb"].items() if name not in ("prose", "code", "asked")]
        assert line["others_bpb"] == pytest.approx(sum(others) / len(others))
        assert 0 <= line["accuracy"] <= 1
        assert line["chance"] == 0.5
    assert len({line["target_bpb"] for line in lines}) == len(lines) - 1  # the whole pool, at either fraction
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "CHOICES_VERSION", 1)  # when accuracy meant something else
        with pytest.raises(InputError, match="that was made by another recipe"):
            compare(recipe_of(content, tmp_path), out)


def test_evidence_for_baselines_is_what_models_say(content: dict[str, Any], tmp_path: Path) -> None:
    """Losses of prior and conditional model are made once for all arms, and kept."""
    content |= {"seeds": [0]}
    walk = {"learning_rates": [1e-2], "num_folds": 0, "max_passes": 1}
    arms = {name: {"baseline": name} for name in ("conditional-loss", "target-path")}
    arms["set"] = {"baseline": "target-path", "options": walk}
    arms |= {name: {"select": {"objective": name}} for name in ("path", "blend", "descent")}
    arms["path"]["select"] |= {"floors": {"code": 3}, "quota_unit": "samples"}  # more than computing losses chooses
    arms["own"] = {"select": {"objective": "path", "objective_options": {"num_folds": 0, "learning_rates": 1e-2}}}
    content["arms"] = {"random": content["arms"]["random"], **arms}
    out = tmp_path / "out"
    lines = compare(recipe_of(content, tmp_path), out)
    assert [line["arm"] for line in lines] == [BEFORE, "random", *arms]
    (own,) = out.glob("scenarios/*/evidence-*")
    assert PathLosses.load(own / "path").described["passes"] == 1
    (evidence,) = out.glob("scenarios/*/evidence")
    runs = {run.parent.parent.name: PathLosses.load(run) for run in out.glob("scenarios/*/select-*/features/pool-path")}
    assert len(runs) == 2, "one for all that walk as usual"
    assert {run.walk["walk_replay"] for run in runs.values()} == {0.5}
    assert PathLosses.load(evidence / "path").walk["walk_replay"] == 0, "baselines know of no replay"
    assert [len(list(out.glob(f"scenarios/*/select-*.{part}*.json"))) for part in ("gradients", "path-")] == [1, 2]
    losses = {name: np.load(evidence / f"loss-{name}.npy") for name in ("start", "target", "prior", "conditional")}
    assert all(values.shape == (40,) and np.isfinite(values).all() for values in losses.values())
    domains = np.array([record["domain"] for record in documents(40, seed=31, prefix="p")])
    drops = losses["prior"] - losses["conditional"]
    assert drops[domains == "prose"].mean() > drops[domains == "table"].mean()


class TestRecipes:
    @pytest.mark.parametrize(
        ("place", "value", "says"),
        [
            ("arms/odd", {"baseline": "none"}, "arm odd: baseline must be one of random, "),
            ("arms/odd", {}, "must have 'baseline', 'ids' or 'select'"),
            ("arms/odd", {"baseline": "random", "ids": "x.txt"}, "must have 'baseline', 'ids' or 'select'"),
            ("arms/odd", {"baseline": "less", "select": {"model": "m"}}, "unknown model"),
            ("select/model", "m", "unknown model"),
            ("arms/odd", {"ids": "nowhere.txt"}, "ids must be a text file"),
            ("arms/odd", {"ids": 3}, "ids must be a text file"),
            ("arms/odd", {"baseline": "dsir", "select": {"seed": 1}}, "dsir needs no gradients"),
            ("arms/odd", {"select": {"fraction": 0.1}}, "unknown fraction"),
            ("arms/odd", {"select": {}, "deduplicate": "exact"}, "goes with baselines"),
            ("arms/odd", {"baseline": "random", "deduplicate": "fuzzy"}, "exact or minhash"),
            ("arms/odd", {"baseline": "random", "options": {"num_clusters": 2}}, "unknown num_clusters"),
            ("arms/odd", {"baseline": "cluster-histogram", "options": {"num_clusters": 0}}, "at least 1"),
            ("arms/odd", {"baseline": "target-path", "options": {"max_passes": 0}}, "max_passes must be above 0"),
            ("arms/odd", {"baseline": "target-path", "options": {"device": "cpu"}}, "unknown device"),
            ("arms/odd", {"select": {}, "options": {}}, "arm odd: 'options' goes with baselines"),
            ("arms/direct", {"select": {"elbow": 2.0}}, "elbow must be in"),
            ("arms/before", {"baseline": "random"}, "no arm may be called 'before'"),
            ("reference", "nobody", "reference must be one of the arms"),
            ("seeds", [0, 0], "each once"),
            ("seeds", "zero", "seeds must be whole numbers"),
            ("fractions", [1.5], "in (0, 1]"),
            ("epochs", 0, "epochs must be above 0"),
            ("threads", 0, "threads must be"),
            ("anneal/learning_rate", "1e-3", "learning_rate must be a number"),
            ("anneal", {}, "anneal must have a learning_rate"),
            ("anneal/epochs", 2, "unknown epochs"),
            ("scenarios/one/pool", [], "must name its pool"),
            ("scenarios/one/extra", "x", "unknown extra"),
            ("replay", [1.0], "replay must be shares in [0, 1)"),
            ("tokens", 0, "tokens must be above 0"),
            ("current", "nobody", "current must be one of the arms"),
            ("guard", -1, "guard must be at least 0"),
            ("scenarios/one/aside", ["prose"], "must leave out the target's domains"),
            ("model", None, "model must be a text"),
            ("text_field", 5, "text_field must be a text or a list of texts"),
            ("scenarios", {}, "must have 'scenarios'"),
            ("arms", {}, "must have 'arms'"),
            ("arms/../odd", {"baseline": "random"}, "a name in arms must have 1 to 100 bytes"),
            ("arms/" + "a" * 101, {"baseline": "random"}, "a name in arms must have 1 to 100 bytes"),
            ("scenarios/", {}, "a name in scenarios must have 1 to 100 bytes"),
            ("epochs", math.nan, "epochs must be above 0"),
            ("epochs", True, "epochs must be above 0"),
            ("tokens", math.inf, "tokens must be above 0"),
            ("guard", math.nan, "guard must be at least 0"),
            ("threads", True, "threads must be"),
            ("model_name", 3, "model_name must be a text"),
            ("seeds", [2**32], "seeds must lie in [0, 2³²)"),
            ("fractions", [0.1, 0.1], "each once"),
            ("scenarios/one/aside", ["verses"], "domains of aside must be among the held-out"),
            ("scenarios/one/target", ["prose", "code", "table"], "neither the target's nor set aside"),
            ("arms/by-hand", {"ids": "strangers.txt"}, "2 of 2 are not in that of one, 'x1' first"),
        ],
    )
    def test_refused_before_anything_runs(
        self, content: dict[str, Any], tmp_path: Path, place: str, value: object, says: str
    ) -> None:
        (tmp_path / "strangers.txt").write_text("x1\nx2\n")
        if value == {"ids": "strangers.txt"}:
            value = {"ids": str(tmp_path / "strangers.txt")}
        *path, name = place.split("/", place.count("/") if "../" not in place else 1)
        part = content
        for step in path:
            part = part[step]
        part[name] = value
        with pytest.raises(InputError) as refused:
            compare(recipe_of(content, tmp_path), tmp_path / "out")
        assert says in str(refused.value)
        assert not (tmp_path / "out" / "runs.jsonl").exists()

    def test_the_length_of_training_is_given_once(self, content: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="must have 'tokens' or 'epochs', but has both"):
            recipe_of(content | {"tokens": 0.1, "epochs": 1}, tmp_path)

    @pytest.mark.parametrize("role", ["pool", "validation"])
    def test_what_is_scored_is_seen_by_no_arm(self, content: dict[str, Any], tmp_path: Path, role: str) -> None:
        files = content["scenarios"]["one"]
        files["held_out"] = [files["held_out"], files[role]]
        with pytest.raises(InputError, match=f"held-out documents must be text that no arm sees, but .* {role}"):
            compare(recipe_of(content, tmp_path), tmp_path / "out")

    def test_an_arm_that_chooses_little_is_told(self, content: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "ids.txt").write_text("p003\np001\n")
        content |= {"seeds": [0], "arms": {name: content["arms"][name] for name in ("random", "by-hand")}}
        recipe, out = recipe_of(content, tmp_path), tmp_path / "out"
        lines = compare(recipe, out)
        chosen = {line["arm"]: line.get("num_tokens") for line in lines}
        write_results(recipe, lines, out)
        said = f"by-hand has {chosen['by-hand']:,} tokens where random has {chosen['random']:,}"
        assert said in (out / "table.md").read_text(encoding="utf-8")
        assert said in write_report(out).read_text(encoding="utf-8")

    def test_other_files_are_left_alone(self, content: dict[str, Any], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "table.md").write_text("mine")
        with pytest.raises(InputError, match=r"new, empty or an earlier comparison, but .* holds other files"):
            compare(recipe_of(content, tmp_path), out)
        assert [path.name for path in out.iterdir()] == ["table.md"]

    def test_what_is_no_recipe(self, tmp_path: Path) -> None:
        for text, says in (
            ("[1]", "a mapping"),
            ("a: [", "YAML"),
            ("model: x", "'scenarios'"),
            ("a: {b: 1, b: 2}", "names 'b' twice"),
        ):
            (tmp_path / "recipe.yaml").write_text(text)
            with pytest.raises(InputError, match=says):
                read_recipe(tmp_path / "recipe.yaml")
        with pytest.raises(InputError, match="No such file"):
            read_recipe(tmp_path / "none.yaml")

    def test_a_target_that_nobody_can_measure(self, content: dict[str, Any], tmp_path: Path) -> None:
        content["scenarios"]["one"]["target"] = ["verse"]
        with pytest.raises(InputError, match="verse is not"):
            compare(recipe_of(content, tmp_path), tmp_path / "out")

    def test_the_context_is_of_the_recipe(self, content: dict[str, Any], tmp_path: Path) -> None:
        content["anneal"]["max_length"] = CONTEXT + 1
        with pytest.raises(InputError, match="context of 64"):
            compare(recipe_of(content, tmp_path), tmp_path / "out")


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """SIGTERM reaches the parent alone; a run under way would hold it up for as long as it takes."""
    before = set(multiprocessing.active_children())

    def jobs() -> Iterator[Any]:
        yield SlowJob(tmp_path / "begun")
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pipeline._finished(jobs(), 2))
    assert set(multiprocessing.active_children()) <= before
