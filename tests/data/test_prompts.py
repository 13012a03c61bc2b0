"""Documents of which a part is given, and only the rest is to be predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus_samples import FORMATS, prepared, texts, write_lines, write_records
from direct_anneal.data import Fields, write_selected
from selection.tiny import merging_tokenizer

FIELDS = Fields(prompt="question")


def test_a_prompt_is_counted_and_comes_before(tmp_path: Path) -> None:
    records = [{"question": "What is it? ", "text": "A tree."}, {"question": "", "text": "alone"}]
    for format in FORMATS:
        corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", format, records), fields=FIELDS)
        assert texts(corpus) == ["What is it? A tree.", "alone"]
        assert corpus.num_prompt.tolist() == [12, 0]
        assert corpus.num_prompt.dtype == np.int64
        assert corpus.num_tokens.tolist() == [19, 5]
        assert not corpus.issues.counts


@pytest.mark.parametrize("format", FORMATS)
def test_tokens_come_before_tokens(tmp_path: Path, format: str) -> None:
    records = [{"question": [1, 2, 3], "input_ids": [4, 5]}, {"question": [], "input_ids": [6, 7]}]
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", format, records), fields=FIELDS)
    assert [corpus.tokens(i).tolist() for i in range(2)] == [[1, 2, 3, 4, 5], [6, 7]]
    assert corpus.num_prompt.tolist() == [3, 0]


def test_without_the_option_the_field_is_one_like_any_other(tmp_path: Path) -> None:
    corpus = prepared(tmp_path / "out", write_lines(tmp_path / "a.jsonl", [b'{"question": "What? ", "text": "It."}']))
    assert texts(corpus) == ["It."]
    assert corpus.num_prompt.tolist() == [0]


@pytest.mark.parametrize(
    ("prompt", "text", "special", "tokens", "num_prompt"),
    [
        ("aab", "aa", False, [2, 2, 3, 2, 2], 3),
        ("aab", "ca", False, [2, 2, 5, 2], 2),  # the token over the boundary is predicted
        ("aab", "aa", True, [0, 2, 2, 3, 2, 2, 1], 4),  # the end that the prompt alone would have is none
        ("aab", "ca", True, [0, 2, 2, 5, 2, 1], 3),
        ("", "aa", True, [0, 2, 2, 1], 1),
    ],
)
def test_prompt_and_text_are_tokenised_as_one(
    tmp_path: Path, prompt: str, text: str, special: bool, tokens: list[int], num_prompt: int
) -> None:
    path = write_records(tmp_path, "docs", "jsonl", [{"question": prompt, "text": text}])
    corpus = prepared(tmp_path / "out", path, fields=FIELDS, tokenizer=merging_tokenizer(special=special))
    assert corpus.tokens(0).tolist() == tokens
    assert corpus.num_prompt.tolist() == [num_prompt]


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"question": "What? ", "text": "fine"},
        {"question": "What? ", "text": ""},
        {"question": "What? ", "text": " "},
        {"question": [1, 2], "input_ids": []},
        {"question": [1, 2], "text": "words"},
        {"question": "What? ", "input_ids": [1, 2]},
        {"question": 3, "text": "words"},
        {"question": [1, 999], "input_ids": [1, 2]},
        {"question": [1], "input_ids": [1, 999]},
        {"question": 3, "input_ids": [1, 2]},
        {"text": "no prompt"},
        {"question": None, "input_ids": [1, 2]},
        {"question": "", "text": ""},
        {"text": ""},
    ]
    path = write_records(tmp_path, "docs", "jsonl", records)
    corpus = prepared(tmp_path / "out", path, fields=FIELDS)
    rows = {kind: [place.row for place in corpus.issues.places(kind)] for kind in corpus.issues.counts}
    assert rows == {
        "nothing-to-predict": [1, 2, 3, 12],
        "bad-prompt": [4, 5, 6],
        "bad-tokens": [7, 8, 9],
        "no-prompt": [10, 11],
        "empty-text": [13],
    }
    assert corpus.index["row"].to_pylist() == [0, 10, 11]
    assert corpus.num_prompt.tolist() == [6, 0, 0]
    advanced: list[int] = []
    prepared(tmp_path / "out", path, fields=FIELDS, advance=advanced.append)
    assert sum(advanced) == len(records)


@pytest.mark.parametrize("max_length", [2, 3, 5, 8])
def test_left_out_is_exactly_what_predicts_nothing(tmp_path: Path, max_length: int) -> None:
    lengths = [(prompt, rest) for prompt in range(10) for rest in range(4)]
    records = [{"question": [7] * prompt, "input_ids": [8] * rest} for prompt, rest in lengths]
    path = write_records(tmp_path, "docs", "jsonl", records)
    corpus = prepared(tmp_path / "out", path, fields=FIELDS, max_length=max_length)
    predicting = [
        row
        for row, (prompt, rest) in enumerate(lengths)
        if any(position % max_length for position in range(prompt, prompt + rest))
    ]
    assert corpus.index["row"].to_pylist() == predicting


def test_the_fingerprint_knows_where_the_prompt_ends(tmp_path: Path) -> None:
    fingerprints = []
    for name, cut in (("a", 0), ("b", 4), ("c", 5)):
        records = [{"id": "x", "question": "What is it"[:cut], "text": "What is it"[cut:]}]
        path = write_records(tmp_path, name, "jsonl", records)
        fingerprints.append(prepared(tmp_path / f"{name}-out", path, fields=FIELDS).fingerprint)
    assert len(set(fingerprints)) == 3


def test_documents_are_copied_as_they_came(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a{i}", "question": f"Q{i} ", "more": i}).encode() for i in range(4)]
    corpus = prepared(tmp_path / "out", write_lines(tmp_path / "a.jsonl", lines), fields=FIELDS)
    [path] = write_selected(corpus, np.array([True, False, False, True]), tmp_path / "chosen")
    assert path.read_bytes() == b"".join(line + b"\n" for line in (lines[0], lines[3]))
