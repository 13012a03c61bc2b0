"""Files that unpack to far more than they are, in every codec that is opened: one line each, and no memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from direct_anneal.cli import main
from direct_anneal.data import expand
from direct_anneal.data.formats import FORMATS, isolated, streams
from direct_anneal.errors import InputError
from direct_anneal.features.storage import place_at, read_table
from direct_anneal.io import tables
from direct_anneal.io.digests import sha256_of_file, tree_digests
from direct_anneal.io.records import SEAL, sealed
from selection.pools import chosen, write_world

BOUND = 48 * 2**20
PACKED_LINES = sorted(name for name in FORMATS if name.endswith((".gz", ".zst")))
CODECS = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")


def refused(path: Path) -> str:
    with pytest.raises(InputError) as told:
        for _ in expand([str(path)], "pool")[0].records():
            pass
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("name", PACKED_LINES)
def test_lines_arrays_and_tables_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Twenty thousand times its size, of white space, so that there is no long line to be left out."""
    monkeypatch.setattr(streams, "_ALWAYS_ALLOWED_BYTES", 2**18)
    monkeypatch.setattr(streams, "MAX_RATIO", 100)
    path = tmp_path / f"a.{name}"
    opening = {"json.": b"[", "csv.": b"text\n", "tsv.": b"text\n"}.get(name.rpartition(".")[0] + ".", b"")
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[name.rpartition(".")[2]]) as stream:
        stream.write(opening)
        for _ in range(4):
            stream.write(b"\n" * 2**20)
    assert path.stat().st_size < 2**16
    assert "unpack to at most 100 times its size" in refused(path)


@pytest.mark.parametrize("codec", CODECS)
def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """A page of one value over and over."""
    monkeypatch.setattr(isolated, "HEADROOM_BYTES", BOUND)
    page = pa.table({"input_ids": pa.array([np.zeros(BOUND // 6, dtype=np.int64)])})
    pq.write_table(page, tmp_path / "a.parquet", compression=codec, use_dictionary=codec == "none")
    assert "memory" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_arrow_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Any) -> None:
    monkeypatch.setattr(isolated, "HEADROOM_BYTES", BOUND)
    table = pa.table({"text": [" " * (2 * BOUND if codec else 5)]})
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with (
        pa.OSFile(str(saved / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=options) as stream,
    ):
        stream.write_table(table)
    if codec is None:  # nothing to unpack: it is as large as it is
        assert len(list(expand([str(saved)], "pool")[0].records())) == 1
    else:
        assert (saved / "a.arrow").stat().st_size < 2**20
        assert refused(saved)


@pytest.mark.parametrize("ending", ["jsonl.bz2", "jsonl.xz", "jsonl.lz4", "jsonl.br", "orc", "zip", "tar.gz"])
def test_what_is_not_opened(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"any")
    with pytest.raises(InputError, match=r"jsonl\.zst"):
        expand([str(tmp_path / f"a.{ending}")], "pool")


# Tables of a run, whose digests whoever forges the run has forged as well.


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. To be read, not changed."""
    directory = write_world(tmp_path_factory.mktemp("bombs"))
    return chosen(checkpoint, directory, directory / "run").out


def forge(run: Path, path: Path, content: bytes) -> None:
    """Replace a file, and in all records what they say of it, and of each other; with seals that are right."""
    changed = [path]
    before = {path: _digests(path)}
    path.write_bytes(content)
    while changed:
        other = changed.pop()
        said = dict(zip(before[other], _digests(other), strict=True))
        for record in run.rglob("*.json"):
            text = record.read_text()
            if record != other and any(old in text for old in before[other]):
                before[record] = _digests(record)
                for old, new in said.items():
                    text = text.replace(old, new)
                found = json.loads(text)
                for entry in found.get("files", {}).values() if isinstance(found.get("files"), dict) else [found]:
                    if isinstance(entry, dict) and entry.get("sha256") == _digests(other)[0]:
                        entry["bytes"] = other.stat().st_size
                content_of = {name: value for name, value in found.items() if name != SEAL}
                record.write_text(json.dumps(sealed(content_of) if SEAL in found else found))
                changed.append(record)


def _digests(path: Path) -> list[str]:
    return [sha256_of_file(path), str(tree_digests({"": path})[""])]


def _garbage(_: pa.Table) -> bytes:
    return b"PAR1 and no more"


def _bomb(table: pa.Table) -> bytes:
    """Write as many rows as before, and one text that is far longer and stands in all of them."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, _repeated(len(table)))
            break
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()


def _repeated(count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array(["x" * 2**27]))


TABLES = {
    "selection.parquet": ["export", "--to", "jsonl"],
    "corpus/pool/*.parquet": ["export", "--to", "jsonl"],
    "features/pool/*.parquet": ["solve", "--num-samples", "5"],
}


@pytest.mark.parametrize("make", [_garbage, _bomb])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_a_forged_run(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[pa.Table], bytes],
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = next(copy.glob(name))
    content = make(pq.read_table(path))
    assert len(content) < 2**17
    forge(copy, path, content)
    monkeypatch.setattr(tables, "ALWAYS_ALLOWED", 2**27)
    monkeypatch.setattr(tables, "MAX_RATIO", 1)
    command, *words = TABLES[name]
    assert main([command, str(copy), *words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert ("must unpack into" if make is _bomb else "is no table") in told or "missing or damaged" in told, told


def test_columns_of_a_forged_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_at(tmp_path)
    path = tmp_path / "columns-00000.parquet"
    pq.write_table(pa.table({"id": _repeated(50)}), path, compression="zstd", store_schema=False)
    monkeypatch.setattr(tables, "ALWAYS_ALLOWED", 2**27)
    monkeypatch.setattr(tables, "MAX_RATIO", 1)
    with pytest.raises(InputError, match="must unpack into 134,217,728 bytes"):
        read_table(tmp_path, place, path.name, ["id"])
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is no table"):
        read_table(tmp_path, place, path.name, ["id"])
