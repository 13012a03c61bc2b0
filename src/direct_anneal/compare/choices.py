"""Accuracy on items with answers to choose from, by the likelihood of each answer a byte.

Cheaper than `evaluate --benchmark`, and without lm-eval: a comparison scores hundreds of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.data.documents import num_shared
from direct_anneal.errors import InputError
from direct_anneal.model.borrowing import in_evaluation_mode
from direct_anneal.model.special_tokens import SpecialTokens
from direct_anneal.model.token_losses import token_nats

VERSION = 2  # of what an accuracy means: lines of another are not gone on with

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


def score_choices(model: nn.Module, tokenizer: Any, path: Path, *, window: int, special: SpecialTokens) -> ChoiceScore:
    """Score a model on a file of items; of what is longer than the window the beginning is lost."""
    items = read_items(path)
    pairs = [(item["prompt"], answer) for item in items for answer in item["answers"]]
    nats = answer_nats(model, tokenizer, pairs, window=window, special=special)
    right, place = 0, 0
    for item in items:
        sizes = [len(answer.encode()) for answer in item["answers"]]
        rates = [nats[place + k] / size for k, size in enumerate(sizes)]
        right += min(range(len(rates)), key=rates.__getitem__) == item["right"]
        place += len(sizes)
    chance = sum(1 / len(item["answers"]) for item in items) / len(items)
    return ChoiceScore(right / len(items), chance, len(items))


def answer_nats(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    window: int,
    special: SpecialTokens,
) -> list[float]:
    """Compute the nats of each answer behind its prompt.

    Both are tokenised as one text, and a token over their boundary is the answer's. What the tokenizer appends is not.

    Args:
        pairs: prompts and answers.
        window: tokens that are read at most, the last ones.
        special: of the model.
    """
    device = next(model.parameters()).device
    alone = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    rows, firsts = list[NDArray[np.int64]](), list[int]()
    for prompt, ids in zip(alone, tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"], strict=True):
        tokens, num_context, end = special.split(np.array(ids))
        num_given = num_shared(np.array(prompt), np.array(ids)) + len(tokens) - len(ids)
        first = min(max(num_given, num_context), end - 1)  # at least the last token is the answer's
        rows.append(tokens[:end][-window:])
        firsts.append(max(1, first - (end - len(rows[-1]))))
    found = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(rows[i]))
    with in_evaluation_mode(model), torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            longest = len(rows[part[0]])
            ids = torch.tensor([[*rows[i], *[0] * (longest - len(rows[i]))] for i in part], device=device)
            losses = token_nats(model, ids[:, :-1], ids[:, 1:]).cpu()
            for line, i in enumerate(part):
                found[i] = float(losses[line, firsts[i] - 1 : len(rows[i]) - 1].sum())
    return found
