from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.corpus_samples import FORMATS, write_lines, write_records
from direct_anneal.data import expand
from direct_anneal.data.formats import streams
from direct_anneal.data.sources import BadRecord
from direct_anneal.errors import InputError

RECORDS = [{"id": f"d{i}", "text": f"Text {i}: ½ ünïcode\u2028 and\nlines\u0085", "n": i} for i in range(7)]


def read(path):
    [source] = expand([str(path)], role="pool")
    return list(source.records())


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_its_records_back(tmp_path, format):
    path = write_records(tmp_path, "docs", format, RECORDS)
    assert read(path) == list(enumerate(RECORDS))


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_only_the_wanted_columns_are_read(tmp_path, format):
    [source] = expand([str(write_records(tmp_path, "docs", format, RECORDS))], role="pool")
    assert list(source.records({"id", "absent"})) == [(i, {"id": f"d{i}"}) for i in range(7)]
    assert list(source.records({"absent"})) == [(i, {}) for i in range(7)]


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_token_lists_come_as_arrays(tmp_path, format):
    path = write_records(tmp_path, "docs", format, [{"input_ids": [1, 2, 3]}, {"input_ids": None}, {"input_ids": [4]}])
    values = [record["input_ids"] for _, record in read(path)]
    assert isinstance(values[0], np.ndarray)
    assert [None if value is None else value.tolist() for value in values] == [[1, 2, 3], None, [4]]


def test_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text":"one"}\r\n\r\n  \n{"text":"a\xe2\x80\xa8b"}\n{"text":"last"}')
    assert read(path) == [(0, {"text": "one"}), (3, {"text": "a\u2028b"}), (4, {"text": "last"})]


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "\xff"}',
        b'{"text": ',
        b"[1, 2]",
        b'"text"',
        b'{"text": "\\ud83d alone"}',
        b"[" * 100_000,
        b'{"id": ' + b"9" * 5000 + b"}",
    ],
    ids=["utf-8", "json", "list", "string", "surrogate", "nesting", "digits"],
)
def test_a_bad_line_is_skipped_and_the_next_read(tmp_path, line):
    (_, bad), after = read(write_lines(tmp_path / "a.jsonl", [line, b'{"text": "\\ud83d\\ude00"}']))
    assert isinstance(bad, BadRecord)
    assert bad.kind == "bad-line"
    assert after == (1, {"text": "😀"})


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_over_the_bound_is_bad_and_never_held(tmp_path, monkeypatch, name):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 64)
    path = write_lines(tmp_path / name, [b'{"text": "' + b"x" * 5000 + b'"}', b'{"text": "after"}', b"[" * 1001])
    (_, bad), after, (_, bad_end) = read(path)
    assert "longer than 1000 bytes" in bad.reason
    assert after == (1, {"text": "after"})
    assert "longer" in bad_end.reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_what_unpacks_without_end_takes_no_memory(tmp_path, monkeypatch, name):
    bound, chunk = 2**20, 2**20
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", bound)
    path = tmp_path / name
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "st": "zstd"}[name[-2:]]) as stream:
        stream.write(b'{"text": "')
        for _ in range(64):
            stream.write(bytes(2**20))
        stream.write(b'"}\n{"text": "after"}\n')
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A line at most, the chunk that is read, and both once more where they are cut and joined.
    assert peak < 2 * (bound + chunk) + 2**19
    assert ["longer" in found[0][1].reason, found[1][1]] == [True, {"text": "after"}]


def test_a_dataset_reads_no_file_outside_itself(tmp_path):
    write_records(tmp_path, "secret", "arrow", [{"text": "a"}] * 2)
    write_records(tmp_path, "docs", "arrow", [{"text": "b"}] * 2)
    state = tmp_path / "docs" / "state.json"
    for name in ("../secret/data-00000-of-00002.arrow", str(tmp_path / "secret" / "data-00000-of-00002.arrow"), ".."):
        state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="must list files beside it"):
            read(tmp_path / "docs")


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_concatenated_streams_are_one_file(tmp_path, codec):
    one = write_lines(tmp_path / f"one.jsonl.{codec}", [b'{"text": "1"}'])
    two = write_lines(tmp_path / f"two.jsonl.{codec}", [b'{"text": "2"}'])
    both = tmp_path / f"both.jsonl.{codec}"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert [record["text"] for _, record in read(both)] == ["1", "2"]


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_everything_before_a_cut_is_read(tmp_path, codec):
    # Lines of random digits hardly compress, so that the cut falls into the middle of them.
    numbers = np.random.default_rng(0).integers(0, 10**18, size=(4000, 8))
    path = write_lines(tmp_path / f"a.jsonl.{codec}", [json.dumps({"text": str(row)}).encode() for row in numbers])
    whole = [record["text"] for _, record in read(path)]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    *kept, (row, damage) = read(path)
    assert damage.kind == "truncated"
    assert row == len(kept)
    assert [record["text"] for _, record in kept] == whole[: len(kept)]
    assert len(whole) / 4 < len(kept) < len(whole) * 3 / 4


def test_lines_before_padding_are_all_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "1"}\n{"text": "2"}\n') + b"\0" * 9)
    one, two, (row, damage) = read(path)
    assert (one[1]["text"], two[1]["text"], row, damage.kind) == ("1", "2", 2, "truncated")


def test_strings_that_are_not_utf8_in_a_table(tmp_path):
    strings = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    one, (row, bad), three = read(tmp_path / "a.parquet")
    assert (one[1]["text"], row, bad.kind, three) == ("good", 1, "bad-line", (2, {"text": "fine"}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(st.sampled_from([b"a", b"bb", b"\r", b"\n", b"\n\n", "\u2028".encode()]), max_size=30),
    chunk_bytes=st.integers(1, 9),
    bound=st.integers(1, 8),
)
def test_lines_do_not_depend_on_chunks(tmp_path, content, chunk_bytes, bound):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(content))
    expected = b"".join(content).split(b"\n")
    if not expected[-1]:
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "MAX_LINE_BYTES", bound)
        patch.setattr(streams, "_CHUNK_BYTES", chunk_bytes)
        read_back = list(streams.read_lines(path, None))
    assert read_back == list(enumerate(line if len(line) <= bound else None for line in expected))


# Which sources a pattern names


def named(*patterns):
    return [str(source) for source in expand([str(pattern) for pattern in patterns], role="pool")]


def test_patterns_directories_and_repeats(tmp_path):
    for name in ("pool/b.jsonl", "pool/a.ndjson", "pool/deep/er/c.JSONL.GZ", "pool/.hidden/d.jsonl", "pool/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pool/b.jsonl")
    (tmp_path / "pool/deep/loop").symlink_to(tmp_path / "pool")
    everything = ["pool/a.ndjson", "pool/b.jsonl", "pool/deep/er/c.JSONL.GZ"]
    assert named("pool") == everything
    assert named("pool/b.jsonl", "pool/a.ndjson", "pool", tmp_path / "pool/../pool/b.jsonl") == everything
    assert named("pool/**/*.jsonl", "link.jsonl") == ["link.jsonl"]
    assert named("link.jsonl", "pool/*.jsonl") == ["link.jsonl"]
    assert named("po?l/[b].jsonl") == ["pool/b.jsonl"]


def test_paths_outside_the_working_directory_are_absolute(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert named("../a.jsonl") == [path.as_posix()]


def test_a_name_with_glob_characters_is_taken_literally(tmp_path):
    write_lines(tmp_path / "a[1].jsonl", [])
    assert named("a[1].jsonl") == ["a[1].jsonl"]


def test_a_saved_dataset_is_one_source_however_it_is_matched(tmp_path):
    write_records(tmp_path, "pool/saved", "arrow", RECORDS)
    assert named("pool") == named("pool/saved") == named("pool/**") == named("pool/*") == ["pool/saved"]


def test_refusals(tmp_path):
    def refusal(pattern):
        with pytest.raises(InputError) as raised:
            expand([pattern], role="validation")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "matches none" in refusal("no/such/*.jsonl")
    assert "validation" in refusal("nothing.jsonl")
    (tmp_path / "empty").mkdir()
    assert "matches none" in refusal("empty")
    (tmp_path / "notes.txt").touch()
    assert ".jsonl.zst" in refusal("*.txt")
    split = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk("both")
    assert "splits test, train" in refusal("both")
    assert "both/test" in refusal("both")
    saved = write_records(tmp_path, "saved", "arrow", RECORDS)
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_indices_files": [{"filename": "indices.arrow"}]}))
    assert "flatten_indices()" in refusal("saved")
    (saved / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "gone.arrow"}]}))
    assert "gone.arrow" in refusal("saved")
    (saved / "state.json").write_text("{}")
    assert "state.json" in refusal("saved")
    with pytest.raises(InputError, match="at least one"):
        expand([], role="pool")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    write_lines(tmp_path / "a.jsonl", []).chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        expand(["a.jsonl"], role="pool")


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "wb"):  # noqa: PTH123 (a bytes path)
        pass
    with pytest.raises(InputError, match="rename"):
        expand(["*.jsonl"], role="pool")


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_a_broken_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "broken.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.parquet"):
        read("broken.parquet")
    saved = write_records(tmp_path, "saved", "arrow", RECORDS)
    (saved / "data-00001-of-00002.arrow").write_bytes(content)
    with pytest.raises(InputError, match="data-00001"):
        read("saved")


def test_a_table_damaged_inside_is_refused_by_name(tmp_path):
    path = write_records(tmp_path, "docs", "parquet", RECORDS)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"docs\.parquet"):
        read(path)
