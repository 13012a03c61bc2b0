"""Parquet files that unpack to far more than they are: refused before memory is asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import write_records
from direct_anneal.data import expand, parquet_limits, tables
from direct_anneal.data.sources import BadRecord
from direct_anneal.errors import InputError

BOUND = 2**20


@pytest.fixture
def bounded(monkeypatch):
    monkeypatch.setattr(parquet_limits, "MAX_UNPACKED_BYTES", BOUND)


def written(path, table, **options):
    pq.write_table(table, path, compression="zstd", **options)
    [source] = expand([str(path)], role="pool")
    return source


def test_a_page_of_one_endless_text(tmp_path, bounded):
    source = written(tmp_path / "a.parquet", pa.table({"text": ["x" * 50 * BOUND]}))
    assert source.path.stat().st_size < BOUND / 10
    with pytest.raises(InputError, match=r"a\.parquet must be readable .*a page of column 'text' would unpack") as told:
        list(source.records({"text"}))
    assert "\n" not in str(told.value)


def test_lists_that_repeat_one_value(tmp_path, bounded):
    """A run of a million equal tokens takes a few bytes, and no page of them is large."""
    tokens = pa.array([np.zeros(50 * BOUND // 8, dtype=np.int64)])
    source = written(tmp_path / "a.parquet", pa.table({"input_ids": tokens}), data_page_size=1000)
    with pytest.raises(InputError, match="column 'input_ids"):
        list(source.records({"input_ids"}))


def test_the_pages_are_asked_and_not_the_footer(tmp_path, bounded):
    """A footer that says little of the sizes lies; it is not read for them."""
    source = written(tmp_path / "a.parquet", pa.table({"text": ["x" * 5 * BOUND]}))
    said = pq.ParquetFile(source.path).metadata.row_group(0).column(0).total_uncompressed_size
    number = _zigzag(said)
    small = bytes([2 * 5 | 128, *[128] * (len(number) - 2), 0])  # 5, in as many bytes
    lying = source.path.read_bytes().replace(number, small)
    source.path.write_bytes(lying)
    assert pq.ParquetFile(source.path).metadata.row_group(0).column(0).total_uncompressed_size == 5
    with pytest.raises(InputError, match="would unpack"):
        list(source.records({"text"}))


def _zigzag(value):
    """A positive integer as the footer has it."""
    value, out = 2 * value, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def test_a_dictionary_of_one_large_text_is_unfolded_a_few_rows_at_a_time(tmp_path, monkeypatch):
    """Each row is the same 0.25 MiB: 256 of them at once would be 64 MiB, above the bound of one."""
    monkeypatch.setattr(parquet_limits, "MAX_UNPACKED_BYTES", BOUND)
    table = pa.table({"text": ["x" * (BOUND // 4)] * 256, "n": range(256)})
    source = written(tmp_path / "a.parquet", table)
    sizes = [batch.nbytes for _, batch in tables.read_batches(source.path, "parquet")]
    # Three rows a batch, and not four: the numbers have a page, too.
    assert max(sizes) <= BOUND < 256 * BOUND // 4
    assert [record["n"] for _, record in source.records()] == list(range(256))


def test_honest_text_is_read_in_whole_batches(tmp_path):
    texts = [f"{i} {np.random.default_rng(i).bytes(200).hex()}" for i in range(600)]
    source = written(tmp_path / "a.parquet", pa.table({"text": texts, "tags": [["a", "b"]] * 600}), row_group_size=300)
    batches = [batch.num_rows for _, batch in tables.read_batches(source.path, "parquet")]
    assert batches == [256, 44, 256, 44]
    assert [record["text"] for _, record in source.records()] == texts


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_headers_of_every_kind_are_understood(tmp_path, version, compression):
    """What the headers say adds up to what the footer of an honest file says."""
    table = pa.table({"text": [str(i) for i in range(5000)], "ids": [[i, None] for i in range(5000)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression=compression, data_page_version=version, data_page_size=1000)
    metadata = pq.ParquetFile(path).metadata
    for number in range(metadata.num_columns):
        chunk = metadata.row_group(0).column(number)
        found = list(parquet_limits._pages(path.read_bytes(), chunk))
        assert sum(num_values for _, _, num_values in found) == chunk.num_values
        assert len(found) > 3
        headers = chunk.total_compressed_size - sum(packed for _, packed, _ in found)
        assert sum(unpacked for unpacked, _, _ in found) + headers == chunk.total_uncompressed_size


def test_a_damaged_header_is_one_line(tmp_path):
    source = written(tmp_path / "a.parquet", pa.table({"text": ["one", "two"]}))
    content = bytearray(source.path.read_bytes())
    content[4:8] = b"\xff" * 4
    source.path.write_bytes(content)
    with pytest.raises(InputError, match="header of a page of column 'text' is damaged"):
        list(source.records({"text"}))


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_text_over_the_bound_of_a_line_is_bad(tmp_path, monkeypatch, format):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    path = write_records(tmp_path, "docs", format, [{"text": "a"}, {"text": "x" * 1001}, {"text": "b"}])
    [source] = expand([str(path)], role="pool")
    (_, first), (_, bad), (_, last) = source.records({"text"})
    assert (first, last) == ({"text": "a"}, {"text": "b"})
    assert isinstance(bad, BadRecord)
    assert "longer than 1,000 bytes" in bad.reason
