"""Pools as people name them: read, or refused for its true cause; nothing in a directory is left out unsaid."""

from __future__ import annotations

import gzip
import json
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import prepared, texts, write_records
from direct_anneal.data import Fields, TokenLayout, check_fields, describe_skipped, expand, write_selected
from direct_anneal.data.formats import FORMATS
from direct_anneal.errors import InputError

RECORDS = [{"id": f"d{i}", "text": f'Line one, "quoted" {i}\nline two ½\t;', "domain": "web"} for i in range(5)]


def rows(path):
    [source] = expand([str(path)], role="pool")
    return [record for _, record in source.records()]


def packed(path, content: bytes):
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    if path.suffix == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


def as_csv(records, line_end="\n"):
    cells = [[*records[0]], *([str(value) for value in record.values()] for record in records)]
    lines = (",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells)
    return "".join(line + line_end for line in lines).encode()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["lines", "array", "pretty", "csv"])
def test_json_and_csv_come_back(tmp_path, kind, ending):
    content = {
        "lines": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
        "array": json.dumps(RECORDS).encode(),
        "pretty": b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
        "csv": b"\xef\xbb\xbf" + as_csv(RECORDS),
    }[kind]
    path = packed(tmp_path / f"a.{'csv' if kind == 'csv' else 'json'}{ending}", content)
    assert rows(path) == RECORDS
    corpus = prepared(tmp_path / "corpus", path)
    assert texts(corpus) == [record["text"] for record in RECORDS]
    assert set(corpus.index["domain"].to_pylist()) == {"web"}
    chosen = np.array([False, True, False, True, True])
    [output] = write_selected(corpus, chosen, tmp_path / "out")
    assert rows(output) == [record for record, is_chosen in zip(RECORDS, chosen, strict=True) if is_chosen]
    [empty] = write_selected(corpus, np.zeros(5, bool), tmp_path / "out")
    assert rows(empty) == []


def test_elements_and_csv_records_are_copied_byte_for_byte(tmp_path):
    packed(tmp_path / "a.json", b'[ {"text":  "spaced",  "x": 1.50} , {"text": "bc"}\n]')
    [output] = write_selected(prepared(tmp_path / "c", "a.json"), np.array([True, True]), tmp_path / "out")
    assert output.read_bytes() == b'[\n{"text":  "spaced",  "x": 1.50},\n{"text": "bc"}\n]\n'
    packed(tmp_path / "a.csv", b'text,n\r\n"two\r\nlines",1.50\r\nplain text,2\r\n')
    [output] = write_selected(prepared(tmp_path / "d", "a.csv"), np.array([True, True]), tmp_path / "out")
    assert output.read_bytes() == b'text,n\n"two\r\nlines",1.50\r\nplain text,2\r\n'


def test_csv_of_other_columns_is_written_below_one_header(tmp_path):
    packed(tmp_path / "a.csv", b"text,n\none two,1\n")
    packed(tmp_path / "b.csv", b'url,text\nu,"three, four"\n')
    [output] = write_selected(prepared(tmp_path / "c", "*.csv"), np.array([True, True]), tmp_path / "out")
    assert output.read_bytes() == b'text,n,url\none two,1,\n"three, four",,u\n'


def test_a_csv_that_is_wrong_in_places(tmp_path):
    packed(tmp_path / "a.csv", b'text,n\na b,1\nc,d,e\n"x"y,1\n\xff,1\n,2\nlast one,3\n')
    found = rows("a.csv")
    assert [found[0], *found[4:]] == [
        {"text": "a b", "n": "1"},
        {"text": None, "n": "2"},
        {"text": "last one", "n": "3"},
    ]
    reasons = [bad.reason for bad in found[1:4]]
    assert ["3 cells" in reasons[0], "expected" in reasons[1], reasons[2]] == [True, True, "not UTF-8"]
    packed(tmp_path / "b.csv", b'text\nab\n"endless\n' + b"x\n" * 9)
    assert rows("b.csv")[0] == {"text": "ab"}
    packed(tmp_path / "c.csv", b"text,text\n1,2\n")
    with pytest.raises(InputError, match="names every field once"):
        rows("c.csv")


@pytest.mark.parametrize("bad", [b'[{"text": "a"}, {"text": ]', b'[{"text": "a"} {"text": "b"}]', b'[{"text": "a"},'])
def test_a_damaged_array_is_used_up_to_there(tmp_path, bad):
    whole, damage = rows(packed(tmp_path / "a.json", bad))
    assert (whole, damage.kind) == ({"text": "a"}, "truncated")


def test_an_array_does_not_depend_on_chunks(tmp_path, monkeypatch):
    packed(tmp_path / "a.json", json.dumps(RECORDS, ensure_ascii=False, indent=1).encode())
    for size in range(1, 40):
        monkeypatch.setattr("direct_anneal.data.formats.streams._CHUNK_BYTES", size)
        assert rows("a.json") == RECORDS


def test_what_a_directory_holds_besides_is_said(tmp_path):
    pool = tmp_path / "pool"
    write_records(pool, "a", "jsonl", RECORDS)
    for name in ("README.md", "b.xml", ".secret.jsonl", "lone.idx", "_SUCCESS"):
        (pool / name).write_text("x")
    (pool / "config.json").write_text('{\n "layers": 3\n}')
    (pool / "more.json").write_text('{"text": "a line"}\n{"text": "another"}\n')
    np.save(pool / "array.npy", np.zeros(3))
    skipped: list = []
    sources = expand(["pool"], "pool", None, skipped)
    assert [str(source) for source in sources] == ["pool/a.jsonl", "pool/more.json"]
    assert {path.name for path in skipped} == {
        *("README.md", "b.xml", ".secret.jsonl", "lone.idx", "_SUCCESS", "config.json", "array.npy")
    }
    said = describe_skipped(skipped)
    assert "7 files of the directories passed over" in said
    for part in ("1 .md", "1 .xml", "1 .idx", "1 hidden", "1 without an ending", "1 .json that hold no documents"):
        assert part in said
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").touch()
    with pytest.raises(InputError, match=r"1 file of the directories passed over \(1 \.txt\)"):
        expand(["none"], "pool")


def test_bounds_beside_headerless_tokens_are_no_csv(tmp_path):
    np.array([1, 2, 0], "<u2").tofile(tmp_path / "a.npy")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,3,id,web\n", mtime=0))
    skipped: list = []
    assert [str(source) for source in expand(["."], "pool", None, skipped)] == ["a.npy"]
    assert skipped == []


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.jsonl.gz", b'{"text": "plain"}\n', "packed with gzip, as its name says, but it is not"),
        (
            "a.jsonl",
            gzip.compress(b'{"text": "a"}\n', mtime=0),
            r"plain, as its name says, but it is packed with gzip: .*\.gz",
        ),
        ("a.jsonl.zst", gzip.compress(b'{"text": "a"}\n', mtime=0), "packed with zstd.*but it is packed with gzip"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
        ("a.json.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", r"window is 2,048 MiB \(zstd --long\)"),
    ],
)
def test_the_cause_is_the_true_one(tmp_path, name, content, cause):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=cause):
        rows(name)


def test_empty_files_and_row_groups_hold_no_document(tmp_path):
    table = pa.table({"id": ["a", "b"], "input_ids": pa.array([[1, 2], [3, 4]])})
    pq.write_table(table, "a.parquet")
    pq.write_table(table.slice(0, 0), "b.parquet")
    with pq.ParquetWriter("c.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(1), table.slice(0, 0)):
            writer.write_table(part)
    for name in ("d.jsonl", "e.json", "f.csv", "g.jsonl.gz"):
        (tmp_path / name).touch()
    corpus = prepared(tmp_path / "corpus", ".")
    assert corpus.index["source"].to_pylist() == ["a.parquet", "a.parquet", "c.parquet"]
    assert corpus.num_tokens.tolist() == [2, 2, 2]


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number:02}.jsonl").write_text(json.dumps({"text": f"text {number}"}) + "\n")
    corpus = prepared(tmp_path / "corpus", "*.jsonl")
    monkeypatch.setattr("direct_anneal.data.corpus._MAX_MAPS", 3)
    expected = [f"text {number}" for number in range(40)]
    assert texts(corpus) == expected
    assert [bytes(corpus.tokens(i).tolist()).decode() for i in reversed(range(40))] == expected[::-1]
    assert len(corpus._maps) == 3


class TestFields:
    def test_dots_reach_into_objects_of_every_format(self, tmp_path):
        records = [{"data": {"text": f"text {i}"}, "meta": {"deep": {"domain": "ab"[i % 2]}}} for i in range(4)]
        fields = Fields(text="data.text", domain="meta.deep.domain")
        for format in ("jsonl", "parquet", "arrow"):
            path = write_records(tmp_path, f"docs-{format}", format, records)
            corpus = prepared(tmp_path / f"c-{format}", path, fields=fields)
            assert texts(corpus) == [record["data"]["text"] for record in records]
            assert corpus.index["domain"].to_pylist() == ["a", "b", "a", "b"]
            assert check_fields(fields, {"pool": corpus}) == []

    def test_a_name_that_has_the_dot_itself_wins(self, tmp_path):
        records = [{"a.b": "whole name", "a": {"b": "within"}}, {"a.b": None, "a": {"b": "within"}}]
        for format in ("jsonl", "parquet"):
            path = write_records(tmp_path, f"docs-{format}", format, records)
            corpus = prepared(tmp_path / format, path, fields=Fields(text="a.b"))
            assert texts(corpus) == ["whole name", "within"]

    def test_a_field_that_no_record_has_is_an_error_with_those_there_are(self, tmp_path):
        path = write_records(tmp_path, "docs", "jsonl", [{"text": "some text", "meta": {"site": "x"}}])
        fields = Fields(domain="sorce")
        corpus = prepared(tmp_path / "corpus", path, fields=fields)
        with pytest.raises(
            InputError, match=r"domain_field must name .* none has 'sorce': take one of text, meta\.site"
        ):
            check_fields(fields, {"pool": corpus})

    def test_a_field_of_one_corpus_alone_is_remarked(self, tmp_path):
        fields = Fields(domain=("site", "sorce"))
        with_it = write_records(tmp_path, "a", "jsonl", [{"text": "some text", "site": "x"}])
        without = write_records(tmp_path, "b", "jsonl", [{"text": "some text"}])
        corpora = {
            name: prepared(tmp_path / name, path, fields=fields) for name, path in (("pool", with_it), ("val", without))
        }
        assert check_fields(fields, corpora) == [
            "val: no record has 'site' or 'sorce' (--domain-field); its file names are used",
            "no record has 'sorce', one of the names of --domain-field",
        ]
        # The counts are kept with the tokens.
        again = prepared(tmp_path / "pool", with_it, fields=fields)
        assert again.fields_seen == {"site": 1, "sorce": 0}

    def test_prompts_of_the_validation_set_alone_are_no_remark(self, tmp_path):
        fields = Fields(prompt="question")
        plain = write_records(tmp_path, "a", "jsonl", [{"text": "some text"}])
        asking = write_records(tmp_path, "b", "jsonl", [{"text": "some text", "question": "what?"}])
        pool = prepared(tmp_path / "pool", plain, fields=fields)
        target = prepared(tmp_path / "validation", asking, fields=fields)
        assert check_fields(fields, {"pool": pool, "validation": target}) == []
        (told,) = check_fields(fields, {"pool": target, "validation": pool})
        assert told.startswith("validation: no record has 'question'")

    def test_ids_that_are_no_ids_are_counted(self, tmp_path):
        pq.write_table(pa.table({"id": [10.0, None, 12.0], "text": ["one", "two", "three"]}), "a.parquet")
        corpus = prepared(tmp_path / "corpus", "a.parquet")
        assert corpus.issues.counts == {"odd-id": 2}
        assert "float" in corpus.issues.places("odd-id")[0].detail


class TestGuesses:
    TOKENS = np.array([5, 6, 7, 2, 9, 300, 2, 8, 4, 4, 4, 2, 1, 1, 9, 2, 7, 7, 2], np.int64)

    def read(self, tmp_path, dtype, layout):
        self.TOKENS.astype(dtype).tofile(tmp_path / "a.npy")
        [source] = expand(["a.npy"], "pool", layout)
        return [record["input_ids"].tolist() for _, record in source.records()]

    def test_what_was_assumed_is_said(self):
        assert "uint16" in TokenLayout.of(512, 2).assumed()
        assert "token 2" in TokenLayout.of(512, 2).assumed()
        assert TokenLayout.of(512, 2, "uint16", 2).assumed() == ""
        assert TokenLayout.of(512, 2) == TokenLayout(dtype="uint16", eos_id=2)  # what is cached does not depend on it

    def test_a_right_guess_is_taken(self, tmp_path):
        assert len(self.read(tmp_path, "<u2", TokenLayout.of(512, 2))) == 5
        assert len(self.read(tmp_path, "<u4", TokenLayout.of(100_000, 2))) == 5

    @pytest.mark.parametrize(
        ("dtype", "layout", "cause"),
        [
            ("<u4", TokenLayout.of(512, 2), "every second one is 0"),
            ("<u4", TokenLayout.of(512, 0), "every second one is 0"),
            ("<u2", TokenLayout.of(100_000, 2), "no multiple of 4|tokens below 100,000"),
            ("<u2", TokenLayout.of(8, 2), "tokens below 8"),
            ("<u2", TokenLayout.of(512, 3), "end of each document, but it is none"),
        ],
    )
    def test_a_guess_that_the_data_contradict_is_refused(self, tmp_path, dtype, layout, cause):
        with pytest.raises(InputError, match=cause):
            self.read(tmp_path, dtype, layout)

    def test_an_end_token_that_comes_too_often(self, tmp_path):
        np.array([3, 4, 0, 0] * 10, "<u2").tofile(tmp_path / "a.npy")
        [source] = expand(["a.npy"], "pool", TokenLayout.of(512, 0))
        with pytest.raises(InputError, match="but it is 20 of its 40"):
            list(source.records())

    def test_what_is_named_is_believed(self, tmp_path):
        assert len(self.read(tmp_path, "<u2", TokenLayout.of(512, 2, "uint16", 3))) == 1


def test_a_bomb_is_left_before_it_has_gone_off(tmp_path, monkeypatch):
    monkeypatch.setattr("direct_anneal.data.formats.streams._ALWAYS_ALLOWED_BYTES", 2**20)
    with pa.CompressedOutputStream("a.jsonl.zst", "zstd") as stream:
        for _ in range(80):
            stream.write(b"\n" * 2**20)
    with pytest.raises(InputError, match="at most 1,000 times its size"):
        rows("a.jsonl.zst")


def test_long_windows_that_can_be_read_are_read(tmp_path):
    content = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(50))
    (tmp_path / "a.jsonl").write_bytes(content)
    try:
        subprocess.run(["zstd", "-q", "--long=27", "a.jsonl"], check=True)
    except FileNotFoundError:
        pytest.skip("there is no zstd here")
    assert len(rows("a.jsonl.zst")) == 50


def test_every_format_has_its_own_name_and_output():
    assert len({format.output for format in FORMATS.values()}) == len(FORMATS)
