"""Parquet files that unpack to far more than they are: refused before memory is asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import write_records
from direct_anneal.data import expand
from direct_anneal.data.formats import isolated, tables
from direct_anneal.data.sources import BadRecord
from direct_anneal.errors import InputError

HEADROOM = 96 * 2**20


@pytest.fixture
def bounded(monkeypatch):
    monkeypatch.setattr(isolated, "HEADROOM_BYTES", HEADROOM)


def written(path, table, **options):
    pq.write_table(table, path, compression="zstd", **options)
    [source] = expand([str(path)], role="pool")
    return source


def test_lists_that_repeat_one_value(tmp_path, bounded):
    """A run of many equal tokens takes a few bytes, and no page of them is large."""
    tokens = pa.array([np.zeros(2 * HEADROOM // 8, dtype=np.int64)])
    source = written(tmp_path / "a.parquet", pa.table({"input_ids": tokens}), data_page_size=1000)
    assert source.path.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"a\.parquet must be readable .*one row of it would") as told:
        list(source.records({"input_ids"}))
    assert "\n" not in str(told.value)


def test_a_dictionary_of_one_large_text_is_unfolded_a_few_rows_at_a_time(tmp_path, bounded):
    """Each row is the same MiB: 256 of them at once would be above the bound."""
    table = pa.table({"text": pa.array(["x" * 2**20] * 256).dictionary_encode(), "n": range(256)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, store_schema=False)
    [source] = expand([str(path)], role="pool")
    sizes, rows = [], []
    for first_row, batch in tables.read_batches(path, "parquet"):
        sizes.append(batch.nbytes)
        rows += range(first_row, first_row + batch.num_rows)
        assert batch["n"].to_pylist() == rows[-batch.num_rows :]
    assert rows == list(range(256))
    assert max(sizes) < HEADROOM / 2
    assert [row for row, _ in source.records({"n"})] == rows


def test_honest_text_is_read_in_whole_batches(tmp_path):
    texts = [f"{i} {np.random.default_rng(i).bytes(200).hex()}" for i in range(600)]
    source = written(tmp_path / "a.parquet", pa.table({"text": texts, "tags": [["a", "b"]] * 600}), row_group_size=300)
    batches = [batch.num_rows for _, batch in tables.read_batches(source.path, "parquet")]
    assert batches == [256, 44, 256, 44]
    assert [record["text"] for _, record in source.records()] == texts


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_text_over_the_bound_of_a_line_is_bad(tmp_path, monkeypatch, format):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    path = write_records(tmp_path, "docs", format, [{"text": "a"}, {"text": "x" * 1001}, {"text": "b"}])
    [source] = expand([str(path)], role="pool")
    (_, first), (_, bad), (_, last) = source.records({"text"})
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert isinstance(bad, BadRecord)
    assert "longer than 1,000 bytes" in bad.reason
