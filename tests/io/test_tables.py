"""Tests of tables that are read back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from direct_anneal.io.records import RecordError
from direct_anneal.io.tables import read_parquet


@pytest.fixture
def written(tmp_path: Path) -> Path:
    table = pa.table({"id": ["a", "b"], "domain": ["x", "x"], "loss": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "some.parquet", row_group_size=1)
    return tmp_path / "some.parquet"


def test_columns_come_in_the_order_asked_for(written: Path) -> None:
    for content in (written, written.read_bytes()):
        assert read_parquet(content, ["loss", "id"]).to_pydict() == {"loss": [1.0, 2.0], "id": ["a", "b"]}


def test_text_becomes_a_dictionary_where_asked_for(written: Path) -> None:
    read = read_parquet(written, dictionaries=["domain"])
    assert pa.types.is_dictionary(read.schema.field("domain").type)
    assert read["domain"].to_pylist() == ["x", "x"]
    assert read.schema.field("id").type == pa.string()


def test_a_missing_column_is_refused_not_left_out(written: Path) -> None:
    with pytest.raises(RecordError, match="no column rank, score"):
        read_parquet(written, ["score", "id", "rank"])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RecordError, match="no table that can be read"):
        read_parquet(tmp_path / "none.parquet")
