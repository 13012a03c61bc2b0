"""The store of columns: whoever opens it to read leaves it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from direct_anneal.errors import InputError
from direct_anneal.features.columns import HEADER, ColumnStore, verify_columns
from direct_anneal.features.storage import Directory
from direct_anneal.path import PathLosses
from selection.tiny import files_below

LEFT = "columns-00001.parquet.0123456789abcdef.tmp"


def made(directory: Path, **options: Any) -> ColumnStore:
    """A store of five documents in three shards, all there."""
    given: dict[str, Any] = {"num_samples": 5, "columns": ("nats",), "fingerprint": {"model": "m"}, "rows_per_shard": 2}
    store = ColumnStore(directory, **(given | options))
    for shard in store.missing():
        rows = store.rows(shard)
        store.write(shard, pa.array([f"d{row}" for row in rows]), {"nats": np.array(rows, dtype=float)})
    return store


def test_opened_it_is_what_was_made(tmp_path: Path) -> None:
    whole = made(tmp_path)
    store = ColumnStore.open(tmp_path)
    assert (store.fingerprint, store.columns, store.num_samples) == (whole.fingerprint, ("nats",), 5)
    assert store.missing() == []
    np.testing.assert_array_equal(store.read()["nats"], np.arange(5.0))


def test_what_another_process_is_writing_stays_when_it_is_opened(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / LEFT).write_bytes(b"half of it")
    before = files_below(tmp_path)
    ColumnStore.open(tmp_path).read()
    assert files_below(tmp_path) == before
    made(tmp_path)
    assert not (tmp_path / LEFT).exists(), "whoever writes here is alone"


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("format", "num_samples", "rows_per_shard", "columns", "fingerprint")),
        {"num_samples": -1},
        {"rows_per_shard": 0},
        {"columns": [1]},
        {"fingerprint": "m"},
    ],
)
def test_a_header_that_cannot_be_one_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path)
    header = {**json.loads((tmp_path / HEADER).read_bytes()), **change}
    (tmp_path / HEADER).write_text(json.dumps({name: value for name, value in header.items() if value is not None}))
    with pytest.raises(InputError, match="must hold columns of format 1, but there are none that can be read"):
        ColumnStore.open(tmp_path)
    assert [found.wrong for found in verify_columns(tmp_path)] == [f"{HEADER} cannot be read as format 1"]
    with pytest.raises(InputError, match="must hold columns of this run, but they are of another"):
        made(tmp_path)
    assert made(tmp_path, replace=True).missing() == []


def test_losses_of_a_path_are_read_once_beyond_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, losses = pa.array(["a", "b", "c"]), np.array([[1.0], [2.0], [np.nan]])
    signs = dict.fromkeys(("repeated", "common", "order"), np.zeros(3))
    PathLosses(
        ids=ids, num_tokens=np.ones(3), start=np.arange(3.0), ends=losses, names=("whole",), described={"a": 1}, **signs
    ).save(tmp_path, {"model": "m"}, rows_per_shard=2)
    read, names = Directory.read, list[str]()

    def noted(self: Directory, name: str) -> bytes:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Directory, "read", noted)
    found = PathLosses.load(tmp_path)
    assert [found.ids.to_pylist(), found.described] == [ids.to_pylist(), {"a": 1}]
    np.testing.assert_array_equal(found.ends, losses)
    shards = [name for name in names if name.endswith(".parquet")]
    assert sorted(shards) == sorted(2 * ["columns-00000.parquet", "columns-00001.parquet"])
