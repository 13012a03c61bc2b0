"""Benchmarks as targets: a training split stands for the target, test items score what was learned.

Every item becomes a prompt and its answers. The validation set holds prompt and right answer as one text, as a
practitioner would write it down; the held-out items keep them apart, so that the prompt is seen and not predicted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Text of question answering: it is in no pool, and in no held-out text, of a task.
ANSWERING = ("math_word", "qa_science", "qa_commonsense")

_CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's marks for a calculator


@dataclass(frozen=True)
class Item:
    """One question: the prompt, the answers to choose from, and which one is right."""

    prompt: str
    answers: tuple[str, ...]
    right: int

    @property
    def answer(self) -> str:
        """The right one."""
        return self.answers[self.right]


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        seen: file of the items that selection sees; where `scored` is the same file, its first `num_seen` items.
        scored: file of the items that models are scored on.
        item: from a record to an item.
        num_seen, num_scored: items of the validation set, and at most of the test.
    """

    seen: str
    scored: str
    item: Callable[[dict[str, Any]], Item]
    num_seen: int = 1200
    num_scored: int = 1000

    def validation(self, data: Path) -> list[Item]:
        """The validation set."""
        return list(self._items(data, self.seen))[: self.num_seen]

    def test(self, data: Path) -> list[Item]:
        """Items that models are scored on: no item of the validation set."""
        items = list(self._items(data, self.scored))
        return (items[self.num_seen :] if self.scored == self.seen else items)[: self.num_scored]

    def _items(self, data: Path, name: str) -> Iterator[Item]:
        for line in (data / "eval" / name).read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield self.item(json.loads(line))


def arc(record: dict[str, Any]) -> Item:
    """ARC: a question and three to five choices."""
    choices = record["choices"]
    answers = tuple(f" {text}" for text in choices["text"])
    return Item(f"Question: {record['question']}\nAnswer:", answers, choices["label"].index(record["answerKey"]))


def piqa(record: dict[str, Any]) -> Item:
    """PIQA: a goal and two ways to reach it."""
    answers = (f" {record['sol1']}", f" {record['sol2']}")
    return Item(f"Question: {record['goal']}\nAnswer:", answers, int(record["label"]))


def gsm8k(record: dict[str, Any]) -> Item:
    """GSM8K: a problem and its worked solution; there is nothing to choose from."""
    answer = _CALCULATOR.sub("", record["answer"]).replace("####", "The answer is")
    return Item(f"Question: {record['question']}\nAnswer:", (f" {answer}",), 0)


def sciq(record: dict[str, Any]) -> Item:
    """SciQ: a question and four choices, without the supporting passage."""
    answers = tuple(f" {record[name]}" for name in ("correct_answer", "distractor1", "distractor2", "distractor3"))
    return Item(f"Question: {record['question']}\nAnswer:", answers, 0)


def winogrande(record: dict[str, Any]) -> Item:
    """WinoGrande: a sentence up to its gap, and two ways to go on."""
    before, after = record["sentence"].split("_", 1)
    answers = tuple(f" {record[name]}{after}" for name in ("option1", "option2"))
    return Item(before.rstrip(), answers, int(record["answer"]) - 1)


def copa(record: dict[str, Any]) -> Item:
    """COPA: a sentence, and two causes or effects of it."""
    joined = {"cause": "because", "effect": "so"}[record["question"]]
    answers = tuple(f" {record[name][0].lower()}{record[name][1:]}" for name in ("choice1", "choice2"))
    return Item(f"{record['premise'].rstrip('.')} {joined}", answers, int(record["label"]))


def humaneval(record: dict[str, Any]) -> Item:
    """HumanEval: a function's head and description, and its body; there is nothing to choose from."""
    return Item(record["prompt"].rstrip("\n"), (f"\n{record['canonical_solution']}",), 0)


TASKS: dict[str, dict[str, Task]] = {
    "test": {
        "science": Task("arc_easy_train.jsonl", "arc_easy_test.jsonl", arc),
        "sense": Task("piqa_train.jsonl", "piqa_valid.jsonl", piqa),
        "arithmetic": Task("gsm8k_train.jsonl", "gsm8k_test.jsonl", gsm8k),
    },
    # Other benchmarks than those of the test: a default that is sought on these is judged on ones it never met.
    "development": {
        "sciq": Task("sciq_validation.jsonl", "sciq_validation.jsonl", sciq, num_seen=500),
        "winogrande": Task("winogrande_validation.jsonl", "winogrande_validation.jsonl", winogrande, num_seen=600),
        "copa": Task("copa_train.jsonl", "copa_validation.jsonl", copa),
        "programs": Task("humaneval.jsonl", "humaneval.jsonl", humaneval, num_seen=100),
    },
}


def validation_records(items: list[Item], name: str) -> list[dict[str, Any]]:
    """Prompt and right answer as one text."""
    return [
        {"id": f"{name}/seen/{i}", "domain": name, "text": item.prompt + item.answer} for i, item in enumerate(items)
    ]


def scored_records(items: list[Item], name: str) -> list[dict[str, Any]]:
    """Each item twice: its answer behind a prompt that is not predicted (domain `name`), and as a whole."""
    answers = [
        {"id": f"{name}/answer/{i}", "domain": name, "prompt": item.prompt, "text": item.answer}
        for i, item in enumerate(items)
    ]
    whole = [
        {"id": f"{name}/whole/{i}", "domain": f"{name} (whole)", "text": item.prompt + item.answer}
        for i, item in enumerate(items)
    ]
    return answers + whole


def choice_records(items: list[Item]) -> list[dict[str, Any]]:
    """Items with something to choose from, for the accuracy."""
    return [
        {"prompt": item.prompt, "answers": list(item.answers), "right": item.right}
        for item in items
        if len(item.answers) > 1
    ]
