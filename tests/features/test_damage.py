"""A test per kind of damage: `verify` names the shard, and extraction computes it alone, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus_samples import prepared
from direct_anneal.cli import main
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore, Local, extract, verify
from direct_anneal.gradients import GradientSketcher
from features.extraction_runs import ROWS_PER_SHARD, extracted, sketcher, store_for
from selection.tiny import CONTEXT, SKETCH_SIZE, documents, files_below, write_jsonl

DAMAGED = 2
ARRAY, SIDECAR, RECORD = (f"features-0000{DAMAGED}.{suffix}" for suffix in ("npy", "parquet", "json"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Five shards of five rows, the last one short."""
    pool = write_jsonl(tmp_path_factory.mktemp("pool") / "pool.jsonl", documents(23, seed=1))
    return prepared(tmp_path_factory.mktemp("corpus"), pool)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store. To be copied, not changed."""
    return extracted(checkpoint, corpus, tmp_path_factory.mktemp("whole")).directory


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes((store / name).read_bytes()[:-3]) and None


def _flip(name: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        content = bytearray((store / name).read_bytes())
        content[len(content) // 2] ^= 1
        (store / name).write_bytes(content)

    return damage


def _remove(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).unlink()


def _record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        record = json.loads((store / RECORD).read_bytes())
        change(record)
        (store / RECORD).write_text(json.dumps(record))

    return damage


def _vouched(store: Path, name: str) -> None:
    """Let the record say of a file what the file is, so that only its content can tell."""
    content = (store / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _record(lambda record: record["files"].update({name: entry}))(store)


def _rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        np.save(store / ARRAY, change(np.load(store / ARRAY)))
        _vouched(store, ARRAY)

    return damage


def _scaled(factor: float) -> Callable[[Path], None]:
    return _rows(lambda rows: np.concatenate([rows[:3], np.float16(factor) * rows[3:]]))


def _table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        pq.write_table(change(pq.read_table(store / SIDECAR)), store / SIDECAR)
        _vouched(store, SIDECAR)

    return damage


def _no_format(name: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        (store / name).write_bytes(b"neither one nor the other")
        _vouched(store, name)

    return damage


def _outside(store: Path) -> None:
    """A true description of a file that is there, but not in the store."""
    (store.parent / "outside.npy").write_bytes((store / ARRAY).read_bytes())
    _record(lambda record: record["files"].update({"../outside.npy": record["files"].pop(ARRAY)}))(store)


ONE_SHARD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated array": (_truncate(ARRAY), rf"{ARRAY} must have \d+ bytes, but has \d+"),
    "truncated sidecar": (_truncate(SIDECAR), rf"{SIDECAR} must have \d+ bytes, but has \d+"),
    "truncated record": (_truncate(RECORD), f"{RECORD} is no JSON"),
    "flipped byte of the array": (_flip(ARRAY), f"{ARRAY} has another sha256"),
    "flipped byte of the sidecar": (_flip(SIDECAR), f"{SIDECAR} has another sha256"),
    "missing array": (_remove(ARRAY), f"{ARRAY} is not there"),
    "missing sidecar": (_remove(SIDECAR), f"{SIDECAR} is not there"),
    "missing record": (_remove(RECORD), f"{RECORD} is not there"),
    "record of another number": (_record(lambda r: r.update(shard=1)), "must say shard 2, but says 1"),
    "record of other rows": (_record(lambda r: r.update(rows=4)), "must say rows 5, but says 4"),
    "record that is none": (lambda store: (store / RECORD).write_text("[]") and None, "is no record"),
    "record without files": (_record(lambda r: r.pop("files")), "names none"),
    "record without sizes": (_record(lambda r: r["files"].update({ARRAY: 3})), f"size nor sha256 of {ARRAY}"),
    "record that names an outside file": (_outside, rf"must name {ARRAY} and {SIDECAR}, but names .*\.\./outside\.npy"),
    "other dtype": (_rows(lambda rows: rows.astype(np.float32)), "float16 of shape .*, but is float32"),
    "other shape": (_rows(lambda rows: rows[:, 1:]), rf"but is float16 of \(5, {SKETCH_SIZE - 1}\)"),
    "row missing": (_rows(lambda rows: rows[1:]), rf"but is float16 of \(4, {SKETCH_SIZE}\)"),
    "no npy": (_no_format(ARRAY), f"{ARRAY} is no npy file"),
    "no Parquet": (_no_format(SIDECAR), f"{SIDECAR} is no Parquet file"),
    "sidecar column missing": (_table(lambda table: table.drop_columns("loss")), "must have the columns id, source"),
    "sidecar of another type": (
        _table(lambda table: table.set_column(2, "row", table["row"].cast(pa.int32()))),
        "must have row of type int64, but has int32",
    ),
    "sidecar row missing": (_table(lambda table: table[1:]), "must have 5 rows, but has 4"),
}


def recomputed(checkpoint: Path, corpus: Corpus, directory: Path) -> list[int]:
    """Extract again; the shards that were written."""
    written: list[int] = []

    class Watched(FeatureStore):
        def write(self, shard: int, *more: Any) -> None:
            written.append(shard)
            super().write(shard, *more)

    header = store_for(corpus, directory).header
    store = Watched(
        directory,
        num_samples=header.num_samples,
        sketch_size=header.sketch_size,
        fingerprint=header.fingerprint,
        rows_per_shard=header.rows_per_shard,
    )
    build: Callable[[], GradientSketcher] = lambda: sketcher(checkpoint)  # noqa: E731
    extract(corpus, store, Local(build), max_length=CONTEXT)
    return written


@pytest.mark.parametrize("kind", ONE_SHARD)
def test_one_shard_is_named_and_computed_again(
    checkpoint: Path, corpus: Corpus, whole: Path, copied: Path, kind: str
) -> None:
    damage, told = ONE_SHARD[kind]
    damage(copied)
    damaged = files_below(copied)
    (finding,) = verify(copied)
    assert finding.wrong.startswith(f"shard {DAMAGED}: ")
    assert not finding.harmless
    assert re.search(told, finding.wrong), finding.wrong
    assert files_below(copied) == damaged, "to look must change nothing"
    assert recomputed(checkpoint, corpus, copied) == [DAMAGED]
    assert files_below(copied) == files_below(whole)
    assert list(verify(copied)) == []


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_rows_of_another_norm_are_named_and_computed_again_without_their_record(
    checkpoint: Path, corpus: Corpus, whole: Path, copied: Path, factor: float
) -> None:
    """No accident after writing does that under a true sha256, so that only `verify` looks."""
    _scaled(factor)(copied)
    (finding,) = verify(copied)
    assert re.search(rf"norm 1 or 0, but row 3 has {factor:.2g}", finding.wrong), finding.wrong
    assert finding.remedy.startswith(f"remove {RECORD} there, and run select again")
    (copied / RECORD).unlink()
    assert recomputed(checkpoint, corpus, copied) == [DAMAGED]
    assert files_below(copied) == files_below(whole)


@pytest.mark.parametrize("name", [ARRAY, SIDECAR, RECORD])
@pytest.mark.parametrize("committed", [True, False])
def test_a_directory_in_a_files_place_is_named_before_anything_is_computed(
    checkpoint: Path, corpus: Corpus, whole: Path, copied: Path, name: str, committed: bool
) -> None:
    if not committed:
        (copied / RECORD).unlink()
    (copied / name).unlink(missing_ok=True)
    (copied / name).mkdir()
    (copied / name / "mine").touch()
    (finding,) = verify(copied)
    assert str(finding).endswith(f"{name} must be a file, but is a directory: move it away, and run select again")
    damaged = files_below(copied)
    with pytest.raises(InputError, match=f"{name} must be a file, but is a directory: move it away"):
        recomputed(checkpoint, corpus, copied)
    assert files_below(copied) == damaged
    (copied / name).rename(copied.parent / "away")
    assert recomputed(checkpoint, corpus, copied) == [DAMAGED]
    assert files_below(copied) == files_below(whole)


def test_a_directory_in_the_headers_place_is_named(corpus: Corpus, copied: Path) -> None:
    (copied / "store.json").unlink()
    (copied / "store.json").mkdir()
    (finding,) = verify(copied)
    assert finding.wrong == "store.json must be a file, but is a directory"
    with pytest.raises(InputError, match=r"store\.json must be a file, but is a directory: move it away"):
        store_for(corpus, copied)
    with pytest.raises(InputError, match=r"store\.json must be a file"):
        FeatureStore.open(copied)


def test_swapped_shards_are_both_named(checkpoint: Path, corpus: Corpus, whole: Path, copied: Path) -> None:
    """With their records: each is whole, and in the other's place."""
    for suffix in ("npy", "parquet", "json"):
        first, second = (copied / f"features-0000{shard}.{suffix}" for shard in (1, 3))
        first.rename(copied / "aside")
        second.rename(first)
        (copied / "aside").rename(second)
    findings = [finding.wrong for finding in verify(copied)]
    assert findings == [
        "shard 1: features-00001.json must say shard 1, but says 3",
        "shard 3: features-00003.json must say shard 3, but says 1",
    ]
    assert recomputed(checkpoint, corpus, copied) == [1, 3]
    assert files_below(copied) == files_below(whole)


def test_a_shard_of_another_model_is_named(
    checkpoint: Path, corpus: Corpus, whole: Path, copied: Path, tmp_path: Path
) -> None:
    """Its numbers are those of this store, and so are its sizes: the record alone tells."""
    header = store_for(corpus, copied).header
    other = FeatureStore(
        tmp_path / "other",
        num_samples=header.num_samples,
        sketch_size=SKETCH_SIZE,
        fingerprint={**header.fingerprint, "model": "another"},
        rows_per_shard=ROWS_PER_SHARD,
    )
    extract(corpus, other, Local(lambda: sketcher(checkpoint)), max_length=CONTEXT)
    for name in (ARRAY, SIDECAR, RECORD):
        shutil.copy(other.directory / name, copied / name)
    (finding,) = verify(copied)
    assert finding.wrong == f"shard {DAMAGED}: {RECORD} is of another store: other model, data or settings"
    assert recomputed(checkpoint, corpus, copied) == [DAMAGED]
    assert files_below(copied) == files_below(whole)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"\xff not JSON", "is no JSON"),
        (b"[]", "holds no fingerprint"),
        (None, "is not there"),
        (b'{"fingerprint": {}, "format": 2}', "has format 2, this version reads 3"),
        (b'{"fingerprint": {}, "format": 3, "num_samples": 0}', "must hold num_samples, sketch_size, rows_per_shard"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(copied: Path, header: bytes | None, told: str) -> None:
    if header is None:
        (copied / "store.json").unlink()
    else:
        (copied / "store.json").write_bytes(header)
    (finding,) = verify(copied)
    assert told in finding.wrong


def test_a_header_that_is_no_json_costs_no_shard(checkpoint: Path, corpus: Corpus, whole: Path, copied: Path) -> None:
    (copied / "store.json").write_bytes(b"{")
    assert recomputed(checkpoint, corpus, copied) == []
    assert files_below(copied) == files_below(whole)


def test_strangers_are_named_and_harmless(copied: Path) -> None:
    for name in ("features-00005.npy", "notes.txt", "features-00001.npy.tmp"):
        (copied / name).write_bytes(b"mine")
    findings = list(verify(copied))
    assert [finding.wrong.split()[0] for finding in findings] == [
        "features-00001.npy.tmp",
        "features-00005.npy",
        "notes.txt",
    ]
    assert all(finding.harmless for finding in findings)


class TestTheCommand:
    @pytest.fixture
    def run(self, whole: Path, tmp_path: Path) -> Path:
        for role in ("pool", "pool-ngrams", "validation", "validation-ngrams"):
            shutil.copytree(whole, tmp_path / "run" / "features" / role)
        return tmp_path / "run"

    @pytest.mark.parametrize("part", [".", "features", "features/pool"])
    def test_says_in_one_line_that_all_is_well(self, run: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(run / part)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith("all files are complete and undamaged")
        assert "pool" in line

    @pytest.mark.parametrize("part", [".", "features", "features/pool"])
    def test_has_a_line_for_each_damage(self, run: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
        _flip(ARRAY)(run / "features" / "pool")
        _remove("features-00004.parquet")(run / "features" / "pool")
        assert main(["verify", str(run / part)]) == 2
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert [line.split(": ")[1] for line in lines] == ["shard 2", "shard 4"]
        assert all(line.endswith("run select again, it computes just this shard") for line in lines)
        assert "but has 2 faults" in captured.err

    def test_misses_a_store_that_a_run_should_have(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(run / "features" / "pool")
        assert main(["verify", str(run)]) == 2
        assert "pool: no features are there" in capsys.readouterr().out

    def test_strangers_do_not_fail_it(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "features" / "pool" / "notes.txt").touch()
        assert main(["verify", str(run)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    @pytest.mark.parametrize("part", ["absent", "empty"])
    def test_refuses_what_holds_no_features(
        self, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        assert main(["verify", str(tmp_path / part)]) == 2
        assert "DIR must hold a run or features" in capsys.readouterr().err


def test_the_format_can_be_read_as_its_page_says(whole: Path, corpus: Corpus) -> None:
    """The example of docs/format.md, on this store, shard by shard."""
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert len(example.strip().splitlines()) == 10
    read: list[tuple[np.ndarray, pa.Table]] = []
    collected = example.replace("runs/a/features/pool", str(whole)) + "    read.append((sketches, samples))\n"
    exec(compile(collected, "docs/format.md", "exec"), {"read": read})
    store = store_for(corpus, whole)
    table = store.samples()
    assert pa.concat_tables([samples for _, samples in read]).equals(table)
    expected = np.concatenate(store.features()) * table["grad_norm"].to_numpy()[:, None]
    np.testing.assert_array_equal(np.concatenate([sketches for sketches, _ in read]), expected)


def test_the_digest_is_what_the_page_says(whole: Path) -> None:
    header = json.loads((whole / "store.json").read_bytes())
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    for path in whole.glob("features-*.json"):
        assert json.loads(path.read_bytes())["store"] == hashlib.sha256(canonical).hexdigest()
