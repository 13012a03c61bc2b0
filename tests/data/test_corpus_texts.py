from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.corpus_samples import FORMATS, prepared, write_lines, write_records
from direct_anneal.data import texts, texts_at
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


class TestAFewOfThem:
    @pytest.mark.parametrize("format", FORMATS)
    def test_by_position_in_any_order(self, tmp_path: Path, format: str) -> None:
        paths = [write_records(tmp_path / "data", f"part-{i}", format, RECORDS[5 * i : 5 * i + 5]) for i in range(2)]
        corpus = prepared(tmp_path / "corpus", *paths)
        wanted = {7: RECORDS[7]["text"], 0: RECORDS[0]["text"], 4: RECORDS[4]["text"], 5: RECORDS[5]["text"]}
        assert texts_at(corpus, [7, 0, 4, 5, 7]) == wanted
        assert texts_at(corpus, []) == {}

    @pytest.mark.parametrize("format", ["jsonl", "parquet"])
    def test_of_tokens_alone_there_is_none(self, tmp_path: Path, format: str) -> None:
        records = [{"text": "one", "input_ids": None}, {"text": None, "input_ids": [1, 2, 3]}]
        corpus = prepared(tmp_path / "corpus", write_records(tmp_path / "data", "part", format, records))
        assert texts_at(corpus, [0, 1]) == {0: "one", 1: None}

    def test_lines_that_are_none_before_it_count(self, tmp_path: Path) -> None:
        lines = [b"not json", b"", b'{"text": "one"}', b'{"other": 1}', b'{"text": "two"}']
        corpus = prepared(tmp_path / "corpus", write_lines(tmp_path / "data.jsonl", lines))
        assert texts_at(corpus, [1]) == {1: "two"}

    def test_before_the_damage_of_a_file(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "data.jsonl.gz", [json.dumps(record).encode() for record in RECORDS] * 50)
        path.write_bytes(path.read_bytes()[:-20])
        corpus = prepared(tmp_path / "corpus", path)
        last = corpus.num_samples - 1
        assert texts_at(corpus, [0, last]) == {0: RECORDS[0]["text"], last: RECORDS[last % 10]["text"]}

    def test_a_source_is_looked_at_only_where_it_is_wanted(self, tmp_path: Path) -> None:
        paths = [write_records(tmp_path / "data", f"part-{i}", "jsonl", RECORDS[:5]) for i in range(2)]
        corpus = prepared(tmp_path / "corpus", *paths)
        paths[0].write_text("changed since")
        assert texts_at(corpus, [6]) == {6: RECORDS[1]["text"]}
        with pytest.raises(InputError, match="changed since"):
            texts_at(corpus, [0, 6])
