"""Accuracy on items with answers to choose from, by the likelihood of each answer a byte.

Cheaper than `evaluate --benchmark`, and without lm-eval: a comparison scores hundreds of models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from direct_anneal.errors import InputError
from direct_anneal.model.token_losses import token_nats

_BATCH = 64  # answers at once


@dataclass(frozen=True)
class ChoiceScore:
    """The result of one model on one file of items.

    Attributes:
        accuracy: share of the items whose right answer has the fewest nats a byte.
        chance: what guessing gives.
        num_items: items scored.
    """

    accuracy: float
    chance: float
    num_items: int


def read_items(path: Path) -> list[dict[str, Any]]:
    """Read items: a JSON object a line with `prompt`, `answers` (texts) and `right` (a position in them).

    Raises:
        InputError: a line is something else.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(
            subject="choices", must="be a JSONL file that can be read", got=f"but {path}: {error}"
        ) from error
    items = []
    for row, line in enumerate(lines):
        try:
            item = json.loads(line)
            fits = isinstance(item["prompt"], str) and all(isinstance(each, str) and each for each in item["answers"])
            fits = fits and len(item["answers"]) > 1 and item["right"] in range(len(item["answers"]))
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise InputError(
                subject="choices",
                must="hold items with prompt, at least two answers, and right, a position among them",
                got=f"but row {row} of {path} is another",
            )
        items.append(item)
    if not items:
        raise InputError(subject="choices", must="hold at least one item", got=f"but {path} is empty")
    return items


def score_choices(model: nn.Module, tokenizer: Any, path: Path, *, window: int) -> ChoiceScore:
    """Score a model on a file of items; of what is longer than the window the beginning is lost."""
    items = read_items(path)
    pairs = [(item["prompt"], answer) for item in items for answer in item["answers"]]
    nats = _answer_nats(model, tokenizer, pairs, window)
    right, place = 0, 0
    for item in items:
        sizes = [len(answer.encode()) for answer in item["answers"]]
        rates = [nats[place + k] / size for k, size in enumerate(sizes)]
        right += min(range(len(rates)), key=rates.__getitem__) == item["right"]
        place += len(sizes)
    chance = sum(1 / len(item["answers"]) for item in items) / len(items)
    return ChoiceScore(right / len(items), chance, len(items))


def _answer_nats(model: nn.Module, tokenizer: Any, pairs: list[tuple[str, str]], window: int) -> list[float]:
    """Return the nats of each answer behind its prompt."""
    device = next(model.parameters()).device
    given = [len(ids) for ids in tokenizer([prompt for prompt, _ in pairs])["input_ids"]]
    whole = tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"]
    order = sorted(range(len(pairs)), key=lambda i: -len(whole[i]))
    found = [0.0] * len(pairs)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                part = order[start : start + _BATCH]
                rows = [whole[i][-window:] for i in part]
                longest = max(map(len, rows))
                ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
                losses = token_nats(model, ids[:, :-1], ids[:, 1:]).cpu()
                for line, i in enumerate(part):
                    cut = len(whole[i]) - len(rows[line])
                    first = max(1, min(given[i], len(whole[i]) - 1) - cut)  # at least the last token is the answer's
                    found[i] = float(losses[line, first - 1 : len(rows[line]) - 1].sum())
    finally:
        model.train(was_training)
    return found
