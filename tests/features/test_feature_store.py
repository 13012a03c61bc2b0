"""The store on arrays alone: what it keeps, what it notices, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from direct_anneal.errors import InputError
from direct_anneal.features import OUTLIER_FACTOR, FeatureStore, ShardRows, SketchedGradients
from direct_anneal.features.rows import StoredRows
from selection.tiny import files_below

NUM_SAMPLES, SKETCH_SIZE, ROWS_PER_SHARD = 10, 4, 3  # shards of 3, 3, 3 and 1 rows
FINGERPRINT = {"model": "a" * 64, "seed": 0}


def opened(directory: Path, **options: Any) -> FeatureStore:
    defaults: dict[str, Any] = {
        "num_samples": NUM_SAMPLES,
        "sketch_size": SKETCH_SIZE,
        "fingerprint": FINGERPRINT,
        "rows_per_shard": ROWS_PER_SHARD,
    }
    return FeatureStore(directory, **(defaults | options))


def content(rows: range, unusable: tuple[int, ...] = ()) -> ShardRows:
    """Rows that tell which they are; those named have no gradient."""
    positions = np.array(rows)
    usable = ~np.isin(positions, unusable)
    features = np.zeros((len(rows), SKETCH_SIZE), dtype=np.float16)
    features[np.arange(len(rows)), positions % SKETCH_SIZE] = usable
    return ShardRows(
        features=features,
        samples=pa.table(
            {
                "id": pa.array([f"d{i}" for i in rows], pa.large_string()),
                "source": pa.array(["pool.jsonl"] * len(rows)).dictionary_encode(),
                "row": positions,
                "domain": pa.array([f"domain {i}" for i in rows]).dictionary_encode(),
                "num_tokens": positions + 2,
            }
        ),
        losses=np.where(usable, positions / 7, np.nan),
        norms=np.where(usable, positions + 0.5, np.inf),
    )


def filled(directory: Path, shards: range | None = None, **options: Any) -> FeatureStore:
    store = opened(directory, **options)
    for shard in shards if shards is not None else range(store.num_shards):
        store.write(shard, content(store.rows(shard)))
    return store


def test_what_is_written_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    store = opened(tmp_path / "store")
    whole = content(range(NUM_SAMPLES))
    assert store.missing() == []
    np.testing.assert_array_equal(np.concatenate(store.features()), whole.features)
    assert store.features()[0][:].dtype == np.float16
    table = store.samples()
    assert table.column_names == ["id", "source", "row", "domain", "num_tokens", "loss", "grad_norm", "reason"]
    assert table["domain"].to_pylist() == whole.samples["domain"].to_pylist()
    np.testing.assert_array_equal(table["loss"].to_numpy(), whole.losses)
    np.testing.assert_array_equal(table["grad_norm"].to_numpy(), whole.norms)


def test_a_store_begun_knows_what_it_lacks(tmp_path: Path) -> None:
    filled(tmp_path, shards=range(1, 3))
    store = opened(tmp_path)
    assert store.missing() == [0, 3]
    for shard in store.missing():
        store.write(shard, content(store.rows(shard)))
    assert opened(tmp_path).missing() == []


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    forth = filled(tmp_path / "forth")
    back = opened(tmp_path / "back")
    for shard in reversed(range(back.num_shards)):
        back.write(shard, content(back.rows(shard)))
    for path in forth.directory.iterdir():
        assert path.read_bytes() == (back.directory / path.name).read_bytes()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # the size stays: only the hash can tell
    path.write_bytes(damaged)


def _swap_record(path: Path) -> None:
    path.write_bytes(path.with_name("features-00000.json").read_bytes())


def _empty_record(path: Path) -> None:
    path.write_text(json.dumps({"rows": 3, "files": {}}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("npy", _truncate),
        ("npy", _flip),
        ("npy", Path.unlink),
        ("parquet", _truncate),
        ("parquet", _flip),
        ("parquet", Path.unlink),
        ("json", Path.unlink),
        ("json", _truncate),
        ("json", _empty_record),
        ("json", _swap_record),
        ("json", lambda path: path.write_bytes(b"\xff\x00 no record")),
        ("json", lambda path: path.write_text("[1, 2]")),
        ("json", lambda path: path.write_text('{"files": {"npy": 3}}')),
        ("json", lambda path: path.write_text('{"files": ["npy", "parquet"]}')),
        ("json", lambda path: path.write_text("null")),
    ],
)
def test_a_damaged_shard_is_missing_and_it_alone(tmp_path: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    filled(tmp_path)
    damage(tmp_path / f"features-00002.{suffix}")
    store = opened(tmp_path)
    assert store.missing() == [2]
    store.write(2, content(store.rows(2)))
    assert opened(tmp_path).missing() == []


def test_what_a_kill_left_over_is_removed_and_harms_nothing(tmp_path: Path) -> None:
    filled(tmp_path, shards=range(3))
    (tmp_path / "features-00003.npy.tmp").write_bytes(b"half")
    (tmp_path / "features-00001.json.tmp").write_bytes(b"{")
    assert opened(tmp_path).missing() == [3]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"fingerprint": FINGERPRINT | {"seed": 7}}, ("seed", "there 0", "now 7")),
        ({"fingerprint": FINGERPRINT | {"model": "b" * 64}}, ("model", "aaaa", "bbbb")),
        ({"fingerprint": FINGERPRINT | {"dtype": "bfloat16"}}, ("dtype", "null", "bfloat16")),
        ({"num_samples": 11}, ("num_samples", "there 10", "now 11")),
        ({"sketch_size": 5}, ("sketch_size", "there 4", "now 5")),
        ({"rows_per_shard": 4}, ("rows_per_shard", "there 3", "now 4")),
    ],
)
def test_another_runs_store_is_refused_with_both_values(
    tmp_path: Path, options: dict[str, Any], values: tuple[str, ...]
) -> None:
    filled(tmp_path)
    with pytest.raises(InputError) as refusal:
        opened(tmp_path, **options)
    for value in (str(tmp_path), *values):
        assert value in str(refusal.value)
    assert opened(tmp_path).missing() == []  # and is as it was


def test_a_store_with_fields_that_are_no_longer_asked_for_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, fingerprint=FINGERPRINT | {"filter": "strict"})
    with pytest.raises(InputError, match="filter"):
        opened(tmp_path)


@pytest.mark.parametrize("header", [b"", b"{}", b"[]", b"\xff", b'{"fingerprint": 3}', None])
class TestALostHeader:
    def lose(self, directory: Path, header: bytes | None) -> None:
        if header is None:
            (directory / "store.json").unlink()
        else:
            (directory / "store.json").write_bytes(header)

    def test_is_written_anew_where_every_record_is_of_this_store(self, tmp_path: Path, header: bytes | None) -> None:
        before = files_below(filled(tmp_path).directory)
        self.lose(tmp_path, header)
        assert opened(tmp_path).missing() == []
        assert files_below(tmp_path) == before

    def test_is_refused_where_one_is_of_another(self, tmp_path: Path, header: bytes | None) -> None:
        filled(tmp_path, fingerprint=FINGERPRINT | {"seed": 1})
        self.lose(tmp_path, header)
        before = files_below(tmp_path)
        with pytest.raises(InputError, match=r"store\.json cannot be read, and shards are not of this run"):
            opened(tmp_path)
        assert files_below(tmp_path) == before


def test_replacing_discards_the_stores_own_files_and_no_others(tmp_path: Path) -> None:
    filled(tmp_path)
    stranger = tmp_path / "notes.npy"
    stranger.write_bytes(b"mine")
    store = opened(tmp_path, fingerprint=FINGERPRINT | {"seed": 1}, replace=True)
    assert store.missing() == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "notes.npy"}
    assert stranger.read_bytes() == b"mine"
    assert opened(tmp_path, fingerprint=FINGERPRINT | {"seed": 1}).missing() == [0, 1, 2, 3]


def test_replacing_keeps_a_store_that_fits(tmp_path: Path) -> None:
    filled(tmp_path)
    assert opened(tmp_path, replace=True).missing() == []


def test_rows_of_another_dtype_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    rows = content(store.rows(0))
    with pytest.raises(ValueError, match="float32"):
        store.write(0, replace(rows, features=rows.features.astype(np.float32)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, SKETCH_SIZE), (3, SKETCH_SIZE + 1), (4, SKETCH_SIZE)])
def test_rows_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    store = opened(tmp_path)
    rows = content(store.rows(0))
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        store.write(
            0,
            replace(rows, features=np.zeros(shape, dtype=np.float16)),
        )
    assert store.missing() == [0, 1, 2, 3]


def test_the_size_of_batches_is_kept_for_those_who_ask_alike(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.batch_tokens(None) is None
    store.keep_batch_tokens(None, 512)
    assert opened(tmp_path).batch_tokens(None) == 512
    assert store.batch_tokens(512) is None
    store.keep_batch_tokens(4096, 1024)
    assert opened(tmp_path).batch_tokens(4096) == 1024
    assert store.batch_tokens(None) is None
    opened(tmp_path, fingerprint=FINGERPRINT | {"seed": 1}, replace=True)
    assert opened(tmp_path, fingerprint=FINGERPRINT | {"seed": 1}).batch_tokens(4096) is None


class TestLoading:
    def test_gradients_are_norm_times_unit(self, tmp_path: Path) -> None:
        gradients = SketchedGradients.load(filled(tmp_path), content(range(NUM_SAMPLES)).samples)
        whole = content(range(NUM_SAMPLES))
        assert len(gradients) == NUM_SAMPLES
        assert len(gradients.quarantined) == 0
        assert all(isinstance(block, StoredRows) for block in gradients.units)  # neither memory nor open files
        np.testing.assert_array_equal(gradients.dense(), whole.features.astype(np.float64) * whole.norms[:, None])

    def test_rows_that_are_not_finite_are_left_out_and_told(self, tmp_path: Path) -> None:
        store = opened(tmp_path)
        for shard in range(store.num_shards):
            # One within a shard, and the last shard whole.
            store.write(shard, content(store.rows(shard), unusable=(4, 9)))
        gradients = SketchedGradients.load(store, content(range(NUM_SAMPLES)).samples)
        kept = [i for i in range(NUM_SAMPLES) if i not in (4, 9)]
        assert gradients.samples["id"].to_pylist() == [f"d{i}" for i in kept]
        assert gradients.quarantined["id"].to_pylist() == ["d4", "d9"]
        assert [len(block) for block in gradients.units] == [3, 2, 3, 0]
        assert len(gradients) == len(gradients.dense()) == len(kept)
        assert np.isfinite(gradients.dense()).all()

    @pytest.mark.parametrize(
        ("loss", "norm", "reason"),
        [
            (np.nan, 1.0, "nan"),
            (1.0, np.nan, "nan"),
            (np.inf, np.nan, "nan"),
            (np.inf, 1.0, "infinite"),
            (1.0, np.inf, "infinite"),
            (-np.inf, np.inf, "infinite"),
            (0.0, 0.0, None),
        ],
    )
    def test_the_reason_is_what_was_measured(
        self, tmp_path: Path, loss: float, norm: float, reason: str | None
    ) -> None:
        gradients = loaded(tmp_path, np.array([1.0, 1.0, norm]), np.array([1.0, 1.0, loss]))
        assert gradients.quarantined["reason"].to_pylist() == ([] if reason is None else [reason])

    def test_an_outlier_is_left_out_and_what_is_just_below_stays(self, tmp_path: Path) -> None:
        # The median of 1, 2, 3 and of what is beyond, without zeros and infinities: 2.5.
        limit = 2.5 * OUTLIER_FACTOR
        norms = np.array([1.0, np.nextafter(limit, np.inf), 0.0, 0.0, 3.0, 2.0, np.inf, 0.0, 0.0])
        gradients = loaded(tmp_path, norms)
        assert gradients.quarantined["id"].to_pylist() == ["d1", "d6"]
        assert gradients.quarantined["reason"].to_pylist() == ["outlier", "infinite"]
        assert gradients.quarantined["grad_norm"].to_pylist() == [norms[1], np.inf]
        assert gradients.norms.tolist() == [1.0, 0.0, 0.0, 3.0, 2.0, 0.0, 0.0]
        norms[1] = limit
        assert loaded(tmp_path / "below", norms).quarantined["id"].to_pylist() == ["d6"]

    def test_among_zeros_nothing_else_stands_out(self, tmp_path: Path) -> None:
        assert len(loaded(tmp_path, np.array([0.0, 0.0, 0.0, 1e-3, 2e-3]))) == 5
        assert len(loaded(tmp_path / "all", np.zeros(4))) == 4

    def test_the_list_is_the_samples_and_is_replaced_with_the_store(self, tmp_path: Path) -> None:
        store = opened(tmp_path)
        rows = pa.table({"id": ["é", "b"], "row": [3, 5], "reason": ["nan", "outlier"]})
        store.list_quarantined(rows)
        lines = (tmp_path / "quarantined.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows.to_pylist()
        opened(tmp_path, fingerprint=FINGERPRINT | {"seed": 1}, replace=True)
        assert not (tmp_path / "quarantined.jsonl").exists()


def loaded(directory: Path, norms: np.ndarray, losses: np.ndarray | None = None) -> SketchedGradients:
    """Gradients of these norms, by way of a store."""
    store = opened(directory, num_samples=len(norms))
    losses = np.ones(len(norms)) if losses is None else losses
    for shard in range(store.num_shards):
        rows = store.rows(shard)
        part = slice(rows.start, rows.stop)
        store.write(shard, replace(content(rows), norms=norms[part], losses=losses[part]))
    return SketchedGradients.load(store, content(range(len(norms))).samples)
