"""Benchmarks of lm-eval on local files, against log-likelihoods summed here; and programs that are run apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import beta

from direct_anneal.errors import InputError
from direct_anneal.evaluate import evaluate, score_benchmark
from direct_anneal.evaluate.benchmarks import binomial_score
from direct_anneal.evaluate.execution import passes
from direct_anneal.model.checkpoint import Checkpoint
from selection.tiny import CONTEXT, byte_tokenizer, write_jsonl

needs_lm_eval = pytest.mark.usefixtures("_lm_eval")

PIQA = [{"goal": f"do {i}", "sol1": "a boy ran", "sol2": f"12 {'= 3 ' * (i % 4)}", "label": i % 2} for i in range(9)]
SCIQ = [
    {
        "question": f"what is {i}",
        "support": "",
        "correct_answer": "tree",
        "distractor1": "the",
        "distractor2": "+ 1",
        "distractor3": "x",
    }
    for i in range(6)
]
ARC = [
    {"question": f"which {i}", "choices": {"text": ["dog", "1 + 1", "y"], "label": ["A", "B", "C"]}, "answerKey": "B"}
    for i in range(5)
]
WINOGRANDE = [
    {"sentence": f"the dog saw {i} and _ ran", "option1": "a", "option2": "the", "answer": str(1 + i % 2)}
    for i in range(5)
]
COPA = [
    {"premise": f"It ran {i}.", "choice1": "A dog.", "choice2": "The tree.", "question": "cause", "label": i % 2}
    for i in range(5)
]
GSM8K = [{"question": f"{i} + 1", "answer": f"#### {i + 1}"} for i in range(2)]
HUMANEVAL = [
    {"task_id": "t/0", "prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "f"}
]
# Prompts and answers as the benchmarks' usual zero-shot form has them.
RANKED: dict[str, tuple[list[Any], Any]] = {
    "piqa": (
        PIQA,
        lambda item: [
            (f"Question: {item['goal']}\nAnswer:", f" {item[s]}", item["label"] == i)
            for i, s in enumerate(("sol1", "sol2"))
        ],
    ),
    "sciq": (
        SCIQ,
        lambda item: [
            (f"\nQuestion: {item['question']}\nAnswer:", f" {item[name]}", name == "correct_answer")
            for name in ("distractor1", "distractor2", "distractor3", "correct_answer")
        ],
    ),
    "arc_easy": (
        ARC,
        lambda item: [
            (f"Question: {item['question']}\nAnswer:", f" {text}", label == item["answerKey"])
            for text, label in zip(item["choices"]["text"], item["choices"]["label"], strict=True)
        ],
    ),
    "winogrande": (
        WINOGRANDE,
        lambda item: [
            (
                item["sentence"].split("_")[0] + item[f"option{i}"],
                item["sentence"].split("_")[1],
                item["answer"] == str(i),
            )
            for i in (1, 2)
        ],
    ),
    "copa": (
        COPA,
        lambda item: [
            (item["premise"][:-1] + " because", f" {item[name][0].lower()}{item[name][1:]}", item["label"] == i)
            for i, name in enumerate(("choice1", "choice2"))
        ],
    ),
}


@pytest.fixture
def _lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="benchmarks need the extra 'eval'")


@torch.no_grad()
def log_likelihood(model: torch.nn.Module, context: str, continuation: str) -> float:
    tokens = byte_tokenizer()(context + continuation)["input_ids"]
    tokens = tokens[-(CONTEXT + 1) :]
    length = len(byte_tokenizer()(continuation)["input_ids"])
    scores = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    targets = torch.tensor(tokens[1:])
    return float(scores.gather(1, targets[:, None])[-length:].sum())


@needs_lm_eval
@pytest.mark.parametrize("name", RANKED)
def test_counts_the_items_whose_right_answer_is_likeliest(checkpoint: Path, tmp_path: Path, name: str) -> None:
    items, answers = RANKED[name]
    opened = Checkpoint(str(checkpoint))
    model = opened.load_model("cpu", "float32")
    right = 0
    for item in items:
        ranked = [(log_likelihood(model, context, text), correct) for context, text, correct in answers(item)]
        right += max(ranked)[1]
    path = write_jsonl(tmp_path / "items.jsonl", items)
    tokenizer = opened.load_tokenizer()
    tokenizer.eos_token = "!"  # lm-eval wants one to start from
    score = score_benchmark(model, tokenizer, name, path, window=CONTEXT, batch_size=4)
    assert (score.accuracy, score.num_items) == (pytest.approx(right / len(items)), len(items))
    assert score.chance == pytest.approx({"sciq": 1 / 4, "arc_easy": 1 / 3}.get(name, 1 / 2))


@needs_lm_eval
@pytest.mark.parametrize(("name", "items"), [("gsm8k", GSM8K), ("humaneval", HUMANEVAL)])
def test_a_random_model_solves_nothing(checkpoint: Path, tmp_path: Path, name: str, items: list[Any]) -> None:
    opened = Checkpoint(str(checkpoint))
    tokenizer = opened.load_tokenizer()
    tokenizer.eos_token = "!"
    path = write_jsonl(tmp_path / "items.jsonl", items)
    score = score_benchmark(opened.load_model("cpu", "float32"), tokenizer, name, path, window=CONTEXT, batch_size=4)
    assert (score.accuracy, score.near_chance, score.num_items) == (0.0, True, len(items))


@pytest.mark.parametrize(
    ("right", "items", "chance", "near"),
    [(7, 20, 0.5, True), (14, 20, 0.5, True), (15, 20, 0.5, False), (0, 30, 0.0, True), (1, 30, 0.0, False)],
)
def test_the_interval_is_clopper_and_pearsons(right: int, items: int, chance: float, near: bool) -> None:
    score = binomial_score(right, items, chance)
    low = float(beta.ppf(0.025, right, items - right + 1)) if right else 0.0
    assert score.low == pytest.approx(low)
    assert score.high == pytest.approx(float(beta.ppf(0.975, right + 1, items - right)))
    assert score.near_chance is near


class TestPrograms:
    @pytest.mark.parametrize(
        ("program", "passed"),
        [
            ("assert 1 + 1 == 2", True),
            ("assert 1 + 1 == 3", False),
            ("def f(:", False),
            ("raise SystemExit(0)", False),
            ("import os; os._exit(0)", False),
            ("print('passed')\nraise ValueError", False),
            ("x = bytearray(4 * 2**30)", False),
            ("open('big', 'wb').write(bytes(2**22))", False),
        ],
    )
    def test_only_those_that_run_to_their_end_pass(self, program: str, passed: bool) -> None:
        assert passes(program) is passed

    def test_a_program_that_never_ends_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("direct_anneal.evaluate.execution.SECONDS", 0.2)
        assert passes("while True: pass") is False


class TestRefuses:
    @pytest.mark.parametrize(
        ("benchmarks", "says"),
        [
            ({"mmlu": PIQA}, "benchmarks must be one of winogrande"),
            ({"piqa": SCIQ}, "row 0 of .* lacks goal"),
            ({"piqa": []}, "at least one record"),
            ({"humaneval": HUMANEVAL}, "run_generated_code"),
        ],
    )
    def test_before_anything_is_scored(
        self, checkpoint: Path, tmp_path: Path, benchmarks: dict[str, list[Any]], says: str
    ) -> None:
        files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", items)) for name, items in benchmarks.items()}
        with pytest.raises(InputError, match=says):
            evaluate(model=checkpoint, out=tmp_path / "out", benchmarks=files)

    def test_a_file_that_is_not_there(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="must be a JSONL file"):
            evaluate(model=checkpoint, out=tmp_path / "out", benchmarks={"piqa": "none.jsonl"})


@needs_lm_eval
def test_evaluate_writes_benchmarks(checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "!"}))
    path = write_jsonl(tmp_path / "piqa.jsonl", PIQA)
    record = evaluate(model=model, out=tmp_path / "out", benchmarks={"piqa": str(path)}, limit=4)
    assert record["benchmarks"]["piqa"]["num_items"] == 4
    assert "domains" not in record
