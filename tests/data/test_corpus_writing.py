from __future__ import annotations

import gzip
import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import FORMATS, prepared, write_lines, write_records
from direct_anneal.data import check_writable, expand, write_selected
from direct_anneal.errors import InputError

RECORDS = [{"text": f"Text {i}\u2028½\n", "id": f"d{i}", "n": i, "tags": ["x"] * (i % 3)} for i in range(11)]
CHOSEN = [1, 2, 6, 10]


def mask(corpus, chosen):
    selected = np.zeros(corpus.num_samples, dtype=bool)
    selected[list(chosen)] = True
    return selected


def content(path):
    """The bytes of an output, of every file of a directory."""
    return {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}


@pytest.mark.parametrize("format", FORMATS)
def test_the_chosen_records_come_back_in_their_format(tmp_path, format):
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", format, RECORDS))
    [path] = write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "result")
    assert path == tmp_path / "result" / ("selected" if format == "arrow" else f"selected.{format}")
    [source] = expand([str(path)], role="pool")
    assert [record for _, record in source.records()] == [RECORDS[i] for i in CHOSEN]
    again = write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "again")[0]
    assert content(again) == content(path)
    # Over an earlier result, another one.
    [path] = write_selected(corpus, mask(corpus, [3]), tmp_path / "result")
    [source] = expand([str(path)], role="pool")
    assert [record["n"] for _, record in source.records()] == [3]
    assert [file.name for file in (tmp_path / "result").iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_chosen_is_an_empty_output(tmp_path, format):
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", format, RECORDS))
    [path] = write_selected(corpus, mask(corpus, []), tmp_path / "result")
    [source] = expand([str(path)], role="pool")
    assert list(source.records()) == []


def test_lines_are_copied_byte_for_byte(tmp_path):
    lines = [
        b'{"text":  "spaced",\t"x": 1.50}',
        b"",
        b"broken",
        '{"text": "a\u2028b \\u00e9 é", "text": "twice"}'.encode(),
        b'{"text": "carriage"}\r',
    ]
    path = write_lines(tmp_path / "b.jsonl", lines)
    path.write_bytes(path.read_bytes() + b'{"text": "no newline"}')
    write_lines(tmp_path / "a.ndjson", [b'\xef\xbb\xbf{"text": "marked"}'])
    corpus = prepared(tmp_path / "out", "*.*json*")
    [result] = write_selected(corpus, np.ones(5, dtype=bool), tmp_path / "result")
    expected = [b'{"text": "marked"}', lines[0], lines[3], lines[4], b'{"text": "no newline"}']
    assert result.read_bytes() == b"".join(line + b"\n" for line in expected)


def test_gzip_carries_no_time(tmp_path):
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", "jsonl.gz", RECORDS))
    [path] = write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "result")
    assert path.read_bytes()[4:8] == b"\0\0\0\0"
    assert [json.loads(line)["n"] for line in gzip.decompress(path.read_bytes()).splitlines()] == CHOSEN


def test_each_format_of_a_mixed_pool_has_its_output(tmp_path):
    for format in FORMATS:
        write_records(tmp_path / "pool", format.replace(".", "-"), format, RECORDS)
    corpus = prepared(tmp_path / "out", "pool")
    paths = write_selected(corpus, mask(corpus, range(0, 55, 2)), tmp_path / "result")
    assert {path.name for path in paths} == {
        "selected",
        "selected.jsonl",
        "selected.jsonl.gz",
        "selected.jsonl.zst",
        "selected.parquet",
    }
    rows = [record["n"] for path in paths for _, record in expand([str(path)], role="pool")[0].records()]
    assert len(rows) == 28


def test_what_follows_a_cut_does_not_hurt(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", [b'{"text": "%d"}' % i for i in range(100, 300)])
    path.write_bytes(path.read_bytes()[:-60])
    corpus = prepared(tmp_path / "out", path)
    [result] = write_selected(corpus, np.ones(corpus.num_samples, dtype=bool), tmp_path / "result")
    assert len(gzip.decompress(result.read_bytes()).splitlines()) == corpus.num_samples < 200


def test_parquet_keeps_types_and_joins_schemas(tmp_path):
    rich = pa.schema(
        [
            pa.field("text", pa.large_string(), nullable=False, metadata={b"what": b"the text"}),
            pa.field("when", pa.timestamp("us", tz="UTC")),
            pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
            pa.field("meta", pa.struct([("score", pa.float32())]), nullable=False),
            pa.field("nothing", pa.null()),
        ],
        metadata={b"origin": b"here"},
    )
    row = {"text": "one text", "when": 5, "kind": "k", "meta": {"score": 0.5}, "nothing": None}
    pq.write_table(pa.Table.from_pylist([row, row], schema=rich), "a.parquet")
    corpus = prepared(tmp_path / "alone", "a.parquet")
    [path] = write_selected(corpus, mask(corpus, [1]), tmp_path / "result1")
    assert pq.read_schema(path).equals(rich, check_metadata=True)

    other = pa.table({"extra": [7], "text": pa.array(["two"], pa.large_string()), "nothing": ["some"]})
    pq.write_table(other, "b.parquet")
    corpus = prepared(tmp_path / "both", "*.parquet")
    [path] = write_selected(corpus, mask(corpus, [0, 2]), tmp_path / "result2")
    table = pq.read_table(path)
    assert table.schema.field("nothing").type == pa.string()
    assert table.select(["text", "meta", "nothing", "extra"]).to_pylist() == [
        {"text": "one text", "meta": {"score": 0.5}, "nothing": None, "extra": None},
        {"text": "two", "meta": None, "nothing": "some", "extra": 7},
    ]


def test_parquet_is_not_split_into_crumbs(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(2000)]}), "a.parquet", row_group_size=100)
    corpus = prepared(tmp_path / "out", "a.parquet")
    everything = np.ones(2000, dtype=bool)
    [path] = write_selected(corpus, everything, tmp_path / "result")
    assert pq.ParquetFile(path).num_row_groups == 1
    monkeypatch.setattr("direct_anneal.data.formats.parquet._PORTION_BYTES", 1)
    [path] = write_selected(corpus, everything, tmp_path / "result")
    assert pq.ParquetFile(path).num_row_groups == 20
    assert pq.read_table(path).equals(pq.read_table("a.parquet"))


def test_datasets_opens_what_was_written(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "grid": datasets.Array2D((2, 2), "int32"),
            "turns": [{"role": datasets.Value("string")}],
        }
    )
    rows = [
        {"text": f"text {i}", "label": i % 2, "grid": [[i, 1], [2, 3]], "turns": [{"role": "u"}] * i} for i in range(6)
    ]
    original = datasets.Dataset.from_list(rows, features=features)
    original.info.license = "MIT"
    original.save_to_disk("saved", num_shards=3)
    corpus = prepared(tmp_path / "out", "saved")
    [path] = write_selected(corpus, mask(corpus, [0, 3, 5]), tmp_path / "result")
    chosen = datasets.load_from_disk(path)
    assert chosen.features == original.features
    assert chosen.info.license == "MIT"
    assert chosen.to_list() == original.select([0, 3, 5]).to_list()


def test_datasets_with_different_columns_are_joined(tmp_path):
    labels = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"text": ["one"], "label": [1]}, features=labels).save_to_disk("pool/a")
    datasets.Dataset.from_dict({"text": ["two"], "url": ["u"]}).save_to_disk("pool/b")
    datasets.Dataset.from_dict({"text": []}).save_to_disk("pool/c")
    corpus = prepared(tmp_path / "out", "pool")
    [path] = write_selected(corpus, mask(corpus, [0, 1]), tmp_path / "result")
    joined = datasets.load_from_disk(path)
    assert joined.features == datasets.Features({**labels, "url": datasets.Value("string")})
    assert joined.to_list() == [{"text": "one", "label": 1, "url": None}, {"text": "two", "label": None, "url": "u"}]


def test_columns_that_do_not_go_together_are_refused_early(tmp_path):
    pq.write_table(pa.table({"text": ["one"], "n": [1]}), "a.parquet")
    pq.write_table(pa.table({"text": ["two"], "n": ["1"]}), "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet must have the same column types.*n has incompatible types"):
        check_writable(expand(["*.parquet"], role="pool"))
    for name, labels in (("c", ["bad", "good"]), ("d", ["good", "bad"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=labels)})
        datasets.Dataset.from_dict({"text": ["one"], "label": [1]}, features=features).save_to_disk(name)
    with pytest.raises(InputError, match="class labels of 'label' differ"):
        check_writable(expand(["c", "d"], role="pool"))
    check_writable(expand(["a.parquet", "c"], role="pool"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_source_that_changed_is_refused(tmp_path, format):
    path = write_records(tmp_path, "docs", format, RECORDS)
    corpus = prepared(tmp_path / "out", path)
    os.utime(path / "state.json" if format == "arrow" else path, ns=(1, 1))
    with pytest.raises(InputError, match="changed since"):
        write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_a_source_that_is_gone_is_refused(tmp_path):
    path = write_records(tmp_path, "docs", "jsonl", RECORDS)
    corpus = prepared(tmp_path / "out", path)
    path.unlink()
    with pytest.raises(InputError, match=r"docs\.jsonl"):
        write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "result")


def test_the_mask_must_fit(tmp_path):
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", "jsonl", RECORDS))
    for wrong in (np.ones(10, dtype=bool), np.arange(11)):
        with pytest.raises(ValueError, match=r"\(11,\) bool"):
            write_selected(corpus, wrong, tmp_path / "result")


def test_a_directory_that_is_no_dataset_is_left_alone(tmp_path):
    corpus = prepared(tmp_path / "out", write_records(tmp_path, "docs", "arrow", RECORDS))
    (tmp_path / "result" / "selected").mkdir(parents=True)
    (tmp_path / "result" / "selected" / "precious").touch()
    with pytest.raises(InputError, match="move it away"):
        write_selected(corpus, mask(corpus, CHOSEN), tmp_path / "result")
    assert (tmp_path / "result" / "selected" / "precious").exists()
