"""Recipes for small checkpoints, scenarios and the grid, as far as they do not just call the package."""

from __future__ import annotations

import importlib
import json
import os
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from direct_anneal.compare import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MODULES = (
    "splits",
    "stable_phase",
    "tasks",
    "damage",
    "readability",
    "rivals",
    "contamination",
    "scenarios",
    "stacked",
    "streams",
)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules, imported as their scripts import each other."""
    for part in ("bakeoff", "gpu"):
        monkeypatch.syspath_prepend(str(RECIPES / part))
    return {name: importlib.import_module(name) for name in MODULES}


def test_documents_serve_one_role_each_in_about_the_shares_that_are_said(recipes: dict[str, ModuleType]) -> None:
    names = [f"domain/{number}" for number in range(4000)]
    roles = [recipes["splits"].role_of(name) for name in names]
    shares = {role: roles.count(role) / 40 for role in set(roles)}
    assert shares == pytest.approx({"stable": 55, "pool": 27, "validation": 6, "development": 6, "test": 6}, abs=2)
    assert roles == [recipes["splits"].role_of(name) for name in names]


def test_a_file_that_is_right_is_left_alone(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    """Its time of change is part of what a comparison goes on with."""
    write, path = recipes["splits"].write_jsonl, tmp_path / "some.jsonl"
    write(path, [{"text": "a b"}])
    os.utime(path, ns=(1, 1))
    write(path, [{"text": "a b"}])
    assert path.stat().st_mtime_ns == 1
    write(path, [{"text": "a"}])
    assert path.stat().st_mtime_ns != 1


DISTRACTORS = ("distractor1", "distractor2", "distractor3")
RECORDS: dict[str, dict[str, Any]] = {
    "arc": {"question": "Hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"},
    "piqa": {"goal": "Hot?", "sol1": "ice", "sol2": "fire", "label": 1},
    "sciq": {
        "question": "Hot?",
        "correct_answer": "fire",
        "distractor1": "a",
        "distractor2": "b",
        "distractor3": "c",
    },
    "gsm8k": {"question": "Hot?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    "winogrande": {"sentence": "Ice met fire and _ won.", "option1": "ice", "option2": "fire", "answer": "2"},
    "copa": {
        "premise": "Ice melted.",
        "choice1": "It froze.",
        "choice2": "It burned.",
        "question": "cause",
        "label": 1,
    },
    "humaneval": {"prompt": "def warm():\n", "canonical_solution": "    return 1\n"},
}
RIGHT = {
    "arc": "Question: Hot?\nAnswer: fire",
    "piqa": "Question: Hot?\nAnswer: fire",
    "sciq": "Question: Hot?\nAnswer: fire",
    "gsm8k": "Question: Hot?\nAnswer: 3 + 4 = 7\nThe answer is 7",
    "winogrande": "Ice met fire and fire won.",
    "copa": "Ice melted because it burned.",
    "humaneval": "def warm():\n    return 1\n",
}


def test_a_sweep_has_each_rival_at_each_setting(recipes: dict[str, ModuleType], tmp_path: Path) -> None:
    files = {role: [f"{role}.jsonl"] for role in ("pool", "validation", "held_out")}
    given = {
        "model": "m",
        "scenarios": {"one": {**files, "target": ["t"]}},
        "arms": {"random": {"baseline": "random"}},
        "anneal": {"learning_rate": 1e-3},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(recipes["rivals"].sweep(given, [0])))
    recipe = read_recipe(path)
    settings = [(arm.baseline, json.dumps(dict(arm.options))) for arm in recipe.arms]
    assert len(settings) == len(set(settings)) == 1 + 2 * 7 + 2 * 3
    assert recipe.seeds == (0,)


class TestTasks:
    @pytest.mark.parametrize("name", RECORDS)
    def test_an_item_is_its_prompt_and_the_right_answer(self, recipes: dict[str, ModuleType], name: str) -> None:
        tasks = recipes["tasks"]
        item = getattr(tasks, name)(RECORDS[name])
        (seen,) = tasks.validation_records([item], "task")
        assert seen["text"] == RIGHT[name]
        answer, whole = tasks.scored_records([item], "task")
        assert answer["prompt"] + answer["text"] == whole["text"] == RIGHT[name]
        assert answer["domain"] != whole["domain"]

    def test_no_item_of_one_file_is_seen_and_scored(self, recipes: dict[str, ModuleType], tmp_path: Path) -> None:
        (tmp_path / "eval").mkdir()
        records = [{**RECORDS["piqa"], "goal": f"{number}"} for number in range(10)]
        (tmp_path / "eval" / "one.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        task = recipes["tasks"].Task("one.jsonl", "one.jsonl", recipes["tasks"].piqa, num_seen=6, num_scored=3)
        seen, scored = ([item.prompt for item in part] for part in (task.validation(tmp_path), task.test(tmp_path)))
        assert (len(seen), len(scored)) == (6, 3)
        assert not set(seen) & set(scored)


def test_damage_is_what_its_kind_says(recipes: dict[str, ModuleType]) -> None:
    rng = random.Random(0)
    records = [{"text": " ".join(f"w{rng.randrange(500)}" for _ in range(80))} for _ in range(20)]
    originals = {tuple(sorted(record["text"].split())) for record in records}
    made = recipes["damage"].damaged(records, 12, "salt")
    assert made == recipes["damage"].damaged(records, 12, "salt")
    assert [record["domain"] for record in made[:4]] == list(recipes["damage"].KINDS)
    for record in made:
        words = record["text"].split()
        assert (tuple(sorted(words)) in originals) == (record["domain"] == "shuffled")
        if record["domain"] == "looping":
            assert words[:68] == words[12:80]


def test_overlap_is_counted_in_runs_of_words(recipes: dict[str, ModuleType]) -> None:
    overlap = recipes["contamination"].overlap
    pool = ["One two three, four five six seven eight nine ten.", "alpha beta gamma delta epsilon zeta"]
    scored = [
        "zero two THREE four five six seven eight nine",
        "two three four",
        "alpha beta gamma delta epsilon",
        "x y z u v w",
    ]
    assert overlap(pool, scored, 8) == 0.5
    assert overlap(pool, scored, 9) == 0.25
    assert overlap([], scored, 8) == 0


class TestStacks:
    """Runs side by side against `anneal`, one by one."""

    @staticmethod
    def checkpoint(directory: Path) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=257,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {"<s>": 0, **{letter: place + 1 for place, letter in enumerate(alphabet)}}
        backend = Tokenizer(models.BPE(vocabulary, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>").save_pretrained(directory)
        return directory

    def test_losses_are_those_of_the_model(self, recipes: dict[str, ModuleType], tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        stacked = recipes["stacked"]
        directory = self.checkpoint(tmp_path / "model")
        model, weights = stacked.load(directory, "cpu")
        ids = torch.randint(0, 257, (2, 3, 20), generator=torch.Generator().manual_seed(1))
        found = stacked.token_losses(model, stacked.stacked(weights, 2), ids)
        logits = AutoModelForCausalLM.from_pretrained(directory)(input_ids=ids.flatten(0, 1)).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids.flatten(0, 1)[:, 1:], reduction="none")
        assert torch.allclose(found.flatten(0, 1), expected, atol=1e-4)  # float32 sums in another order
        texts = [stacked.Text(row.numpy(), given) for row, given in zip(ids[0], (1, 7, 19), strict=True)]
        nats = stacked.text_losses(model, stacked.stacked(weights, 2), texts, window=8, batch_tokens=16)
        short = [
            stacked.text_losses(model, stacked.stacked(weights, 1), [text], window=8, batch_tokens=99)[0, 0]
            for text in texts
        ]
        assert np.allclose(nats, [short, short], rtol=1e-5)
        whole = stacked.text_losses(model, stacked.stacked(weights, 1), texts, window=20, batch_tokens=99)[0]
        assert np.allclose(
            whole, [expected[i, given - 1 :].sum().item() for i, given in enumerate((1, 7, 19))], rtol=1e-4
        )

    def test_training_is_that_of_anneal(self, recipes: dict[str, ModuleType], tmp_path: Path) -> None:
        pytest.importorskip("accelerate", reason="annealing needs the extra 'anneal'")
        from direct_anneal.data import Fields, expand, prepare
        from direct_anneal.model.checkpoint import Checkpoint
        from direct_anneal.train import anneal

        stacked, streams = recipes["stacked"], recipes["streams"]
        directory = self.checkpoint(tmp_path / "model")
        rng = random.Random(2)
        records = [{"id": f"{i}", "text": " ".join(rng.choices(["tree", "sea", "stone"], k=12))} for i in range(30)]
        lines = [json.dumps(record) + "\n" for record in records]
        (tmp_path / "pool.jsonl").write_text("".join(lines))
        (tmp_path / "chosen.jsonl").write_text("".join(lines[::3]))
        options: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 2, "num_tokens": 5 * 2 * 32}
        first = anneal(
            model=directory, data=tmp_path / "pool.jsonl", out=tmp_path / "first", keep_optimizer_state=True, **options
        )
        assert first["num_steps"] == 5
        anneal(
            model=tmp_path / "first",
            data=tmp_path / "chosen.jsonl",
            mix=tmp_path / "pool.jsonl",
            mix_share=0.5,
            out=tmp_path / "second",
            optimizer_state="kept",
            seed=3,
            **options,
        )
        model, weights = stacked.load(tmp_path / "first", "cpu")
        moments = stacked.load_moments(tmp_path / "first" / "optimizer.pt", weights)
        checkpoint = Checkpoint(str(directory))
        pool = prepare(
            expand([str(tmp_path / "pool.jsonl")], "pool"),
            role="pool",
            fields=Fields(),
            load_tokenizer=checkpoint.load_tokenizer,
            tokenizer_fingerprint=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            max_length=32,
            directory=tmp_path / "corpus",
        )
        windows = [
            streams.stream(
                pool,
                np.arange(0, 30, 3),
                replay=0.5,
                num_windows=10,
                window=32,
                separator=checkpoint.separator,
                seed=seed,
            )
            for seed in (9, 3)
        ]
        runs = stacked.stacked(weights, 2)
        stacked.train(model, runs, np.stack(windows), stacked.Training(learning_rate=3e-3), batch=2, moments=moments)
        _, expected = stacked.load(tmp_path / "second", "cpu")
        for name, value in expected.items():
            assert torch.allclose(runs[name][1], value, atol=2e-5), name  # five steps of 3e-3, in float32
            assert not torch.allclose(runs[name][0], value, atol=2e-5)
