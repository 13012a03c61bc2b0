from __future__ import annotations

import json
from pathlib import Path

import pytest

from corpus.corpus_samples import FORMATS, prepared, write_lines, write_records
from direct_anneal.corpus import texts
from direct_anneal.errors import InputError

RECORDS = [{"id": str(i), "text": f"document {i} é"} for i in range(10)]


@pytest.mark.parametrize("format", FORMATS)
def test_texts_in_the_order_of_samples(tmp_path: Path, format: str) -> None:
    path = write_records(tmp_path / "data", "part", format, RECORDS)
    assert list(texts(prepared(tmp_path / "corpus", path))) == [record["text"] for record in RECORDS]


def test_records_that_were_left_out_have_none(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}', b"not json", b"", b'{"text": "  "}', b'{"other": 1}', b'{"text": "two"}']
    path = write_lines(tmp_path / "data.jsonl", lines)
    assert list(texts(prepared(tmp_path / "corpus", path))) == ["one", "two"]


def test_a_changed_source_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", [json.dumps(record).encode() for record in RECORDS])
    corpus = prepared(tmp_path / "corpus", path)
    write_lines(path, [b'{"text": "another"}'])
    with pytest.raises(InputError, match="changed since"):
        list(texts(corpus))


def test_tokens_alone_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", [b'{"text": "one"}', b'{"input_ids": [1, 2, 3]}'])
    with pytest.raises(InputError, match="row 1 has tokens alone"):
        list(texts(prepared(tmp_path / "corpus", path)))
