"""Rows that are read from a shard's file when asked for, against the same rows in memory.

n rows, R sketch size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.errors import InputError
from direct_anneal.features import rows as storage
from direct_anneal.features.rows import StoredRows

n, R = 9, 4


@pytest.fixture
def written(tmp_path: Path) -> tuple[StoredRows, NDArray[np.float16]]:
    values = np.random.default_rng(0).normal(size=(n, R)).astype(np.float16)
    np.save(tmp_path / "features.npy", values)
    return StoredRows(tmp_path / "features.npy", (n, R)), values


@pytest.mark.parametrize("kept", [[True] * n, [i in (1, 2, 5, 8) for i in range(n)], [False] * n], ids=str)
def test_rows_are_those_of_the_array(written: tuple[StoredRows, NDArray[np.float16]], kept: list[bool]) -> None:
    rows, values = written
    rows, values = rows.only(np.array(kept)), values[np.array(kept)]
    assert rows.shape == values.shape
    assert len(rows) == len(values)
    np.testing.assert_array_equal(np.asarray(rows), values)
    assert np.asarray(rows).dtype == np.float16
    for start, stop in ((0, n), (1, 3), (2, 2), (3, 99)):
        np.testing.assert_array_equal(rows[start:stop], values[start:stop])
    if len(values):
        np.testing.assert_array_equal(rows[np.array([3, 0, 3])], values[[3, 0, 3]])
        filled = np.empty((3, R), dtype=np.float32)
        rows.widen(filled, np.array([3, 0, 3]))
        np.testing.assert_array_equal(filled, values[[3, 0, 3]])
        rows.widen(filled[:2], slice(1, 3))
        np.testing.assert_array_equal(filled[:2], values[1:3])
    np.testing.assert_array_equal(rows[np.array([], dtype=np.intp)], values[:0])


def test_rows_far_apart_are_read_by_themselves(
    written: tuple[StoredRows, NDArray[np.float16]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, values = written
    rows = np.array([7, 0, 7])
    expected = stored[rows]
    monkeypatch.setattr(storage, "_ALONE", 1)
    np.testing.assert_array_equal(stored[rows], expected)
    np.testing.assert_array_equal(stored[rows], values[rows])


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_file_that_changed_meanwhile_is_named(
    written: tuple[StoredRows, NDArray[np.float16]], damage: str, begun: bool
) -> None:
    rows, _ = written
    if begun:
        rows[0:1]
    if damage == "gone":
        rows.path.unlink()
    else:
        rows.path.write_bytes(rows.path.read_bytes()[: -2 * R * n])
    with pytest.raises(InputError, match=r"features\.npy cannot be read .*run select again"):
        rows[0:n]
