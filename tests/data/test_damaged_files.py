"""Damage in a file of documents: some records less, or one line that names the file; no traceback, signal or hang."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import prepared, write_records
from direct_anneal.data import Issue, TokenLayout, expand
from direct_anneal.data.formats import isolated
from direct_anneal.errors import InputError

ROUNDS = 200
RECORDS = [
    {
        "id": f"d{i}",
        "text": f"some text ½ {i} " * (i % 7),
        "input_ids": list(range(i % 9)),
        "meta": {"domain": "ab"[i % 2]},
    }
    for i in range(60)
]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(isolated, "SECONDS", 10)
    monkeypatch.setattr(isolated, "HEADROOM_BYTES", 2**29)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flipped bits, bytes set to extremes, lengths blown up, pieces cut out or doubled; often where the footer is."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            break
        place = rng.randrange(len(data)) if rng.random() < 0.6 else max(0, len(data) - 1 - rng.randrange(300))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.choice((0, 127, 128, 255))
        elif kind == 2:
            data[place : place + 8] = struct.pack("<q", rng.choice((-1, 2**31 - 1, 2**62, -(2**63))))
        elif kind == 3:
            del data[place : place + rng.randrange(1, 40)]
        elif kind == 4:
            data[place:place] = data[place : place + rng.randrange(1, 40)]
        else:
            del data[place:]
    return bytes(data)


def read_or_refused(path, layout=None, named=None):
    """Count the records that come; -1 where the file is refused, in one line that names it, or one of those it has."""
    refusal, count = "", -1
    try:
        [source] = expand([str(path)], "pool", layout)
        count = sum(1 for _ in source.records())
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert count >= 0 or any(name in refusal for name in named or [path.name])
    return count


def contents(directory):
    """A whole file of each kind, and the part of it that is damaged."""
    pq.write_table(pa.Table.from_pylist(RECORDS), directory / "a.parquet", row_group_size=25)
    table = pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(directory / "stream"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=25)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    (directory / "a.jsonl").write_bytes(lines)
    (directory / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (directory / "a.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    (directory / "a.json").write_text(json.dumps(RECORDS))
    (directory / "a.csv").write_bytes(b"id,text\n" + b"".join(b'%d,"some text\n%d"\n' % (i, i) for i in range(60)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.parquet"])
def test_random_damage(tmp_path, name):
    contents(tmp_path)
    path, rng = tmp_path / name, random.Random(name)
    whole = path.read_bytes()
    assert read_or_refused(path) == 60
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng))
        read_or_refused(path)


def test_random_damage_of_a_saved_dataset(tmp_path):
    path, rng = write_records(tmp_path, "saved", "arrow", RECORDS), random.Random(1)
    file = path / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    for _ in range(ROUNDS):
        file.write_bytes(damaged(whole, rng))
        read_or_refused(path, named=[file.name])


@pytest.mark.parametrize("name", ["a.npy", "a.bin", "a.ds"])
def test_random_damage_of_tokens(tmp_path, name):
    from data.test_token_files import write

    path = write(tmp_path, name[2:], [[*range(1, 2 + i % 9), 0] for i in range(60)])
    files = {file: file.read_bytes() for file in tmp_path.glob("a.*")}
    rng = random.Random(name)
    for _ in range(ROUNDS):
        for file, whole in files.items():
            file.write_bytes(damaged(whole, rng))
        read_or_refused(path, TokenLayout.of(256, 0), [file.name for file in files])


def test_a_reader_that_dies_is_one_line(tmp_path, monkeypatch):
    """A library that ends by a signal ends its own process alone, and the next file is read."""
    contents(tmp_path)
    server = tmp_path / "server.py"
    server.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    real = isolated._SERVER
    isolated._end_all()
    monkeypatch.setattr(isolated, "_idle", [])
    monkeypatch.setattr(isolated, "_SERVER", server)
    [source] = expand([str(tmp_path / "a.parquet")], "pool")
    with pytest.raises(InputError, match=r"a\.parquet must be readable as Parquet.*signal SIGSEGV"):
        list(source.records())
    server.write_text("import time\nimport signal\nsignal.alarm(1)\ntime.sleep(60)\n")
    with pytest.raises(InputError, match="nothing came of it"):
        list(source.records())
    monkeypatch.setattr(isolated, "_SERVER", real)
    assert len(list(source.records())) == 60


def test_one_process_serves_many_files_and_a_reader_may_stop_early(tmp_path):
    contents(tmp_path)
    [source] = expand([str(tmp_path / "a.parquet")], "pool")
    assert len(list(source.records())) == 60
    process = isolated._idle[-1][1]
    for _ in range(5):
        assert len(list(source.records())) == 60
    assert isolated._idle[-1][1] is process
    records = source.records()
    assert next(records)[1]["id"] == "d0"
    records.close()
    # Two at once, each with a process of its own.
    pairs = list(zip(source.records(), source.records(), strict=True))
    assert all(str(left) == str(right) for left, right in pairs)
    assert len(pairs) == 60


def test_names_that_are_not_utf8(tmp_path):
    contents(tmp_path)
    for name in ("a.parquet",):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
        assert read_or_refused(path) == -1
    stream = (tmp_path / "stream").read_bytes().replace(b"meta", b"me\xffa")
    saved = write_records(tmp_path, "saved", "arrow", RECORDS)
    for file in saved.glob("*.arrow"):
        file.write_bytes(stream)
    with pytest.raises(InputError, match=r"\.arrow must be readable"):
        prepared(tmp_path / "corpus", saved)


def test_what_others_put_into_the_metadata_does_no_harm(tmp_path):
    schema = pa.schema([("text", pa.string())], {b"huggingface": b'{"info": [' + b"[" * 5000})
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": ["one two"]}, schema=schema), tmp_path / f"{name}.parquet")
    assert prepared(tmp_path / "corpus", "*.parquet").num_samples == 2


def test_columns_in_great_depth_and_number(tmp_path):
    """Thousands of levels are no document; thousands of columns may be."""
    value = pa.array(["deep"])
    for _ in range(90):
        value = pa.StructArray.from_arrays([value], ["x"])
    pq.write_table(pa.table({"text": ["a text"], "deep": value}), tmp_path / "deep.parquet")
    pq.write_table(pa.table({"text": ["a text"], **{f"c{i}": [i] for i in range(3000)}}), tmp_path / "wide.parquet")
    assert read_or_refused(tmp_path / "deep.parquet") in (1, -1)
    assert read_or_refused(tmp_path / "wide.parquet") == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, make):
    for name in ("a.jsonl", "a.parquet", "a.npy", "a.json"):
        make(tmp_path / name)
        skipped: list = []
        (tmp_path / "real.jsonl").write_text('{"text": "a text"}\n')
        assert [str(source) for source in expand(["."], "pool", None, skipped)] == ["real.jsonl"]
        assert [path.name for path in skipped] == [name]
        with pytest.raises(InputError):
            expand([name], "pool")
        (tmp_path / name).unlink()
    (tmp_path / "saved").mkdir()
    make(tmp_path / "saved" / "state.json")
    with pytest.raises(InputError):
        list(expand(["saved"], "pool")[0].records())
    np.array([1, 2, 0], "<u2").tofile(tmp_path / "b.ds")
    make(tmp_path / "b.ds.index")
    with pytest.raises(InputError):
        list(expand(["b.ds"], "pool", TokenLayout.of(9, 0))[0].records())
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    shutil.rmtree(tmp_path / "corpus", ignore_errors=True)


def test_an_issue_holds_what_utf8_cannot():
    line = Issue(kind="bad-line", source="a\udcff", row=None, detail="\x00").to_line()
    assert line.isascii()
