from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.web_servers import Quiet, serving
from direct_anneal.config.jobs import job_of
from direct_anneal.config.score import MergeConfig, ScoreConfig
from direct_anneal.config.weights import WeightsConfig
from direct_anneal.distill import read_scorer, write_scorer
from direct_anneal.distill.histogram import added, bins_of, counted, lower_edge, relabelled, write_whole
from direct_anneal.distill.scoring import merge, score
from direct_anneal.errors import InputError
from direct_anneal.export.weights import weights
from distill.conftest import random_scorer
from selection.tiny import documents, files_below, write_jsonl

FLOATS = arrays(np.float32, st.integers(1, 30), elements=st.floats(-4, 4, width=32))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Seven files in three formats, with bad lines, domains and none; eighty documents that can be scored."""
    directory = tmp_path / "pool"
    directory.mkdir()
    for number in range(4):
        write_jsonl(directory / f"plain-{number}.jsonl", documents(15, seed=number, prefix=f"a{number}-"))
    with (directory / "plain-0.jsonl").open("a") as file:
        file.write('{"no": "text"}\n\nnot json\n{"text": " \\n"}\n')
    for number in (4, 5):
        records = [{"text": record["text"]} for record in documents(5, seed=number)]
        with gzip.GzipFile(directory / f"packed-{number}.jsonl.gz", "wb", mtime=0) as stream:
            stream.write("".join(json.dumps(record) + "\n" for record in records).encode())
    pq.write_table(pa.Table.from_pylist(documents(10, seed=6)), directory / "table.parquet", row_group_size=4)
    return directory


def scored(scorer: Path, pool: Path, out: Path, **options: Any) -> dict[str, Any]:
    return score(ScoreConfig(scorer=str(scorer), pool=(str(pool),), out=str(out), **{"workers": 1, **options}))


def read_scores(out: Path) -> dict[tuple[str, int], float]:
    """(source, row) → score, from what is on disk."""
    found = {}
    for path in sorted((out / "scores").glob("?????.json")):
        source = json.loads(path.read_text())["source"]
        for entry in pq.read_table(path.with_suffix(".parquet")).to_pylist():
            found[Path(source).name, entry["row"]] = entry["score"]
    return found


def read_chosen(out: Path) -> list[str]:
    """Texts of the choice, from the pool's own formats."""
    texts = []
    for path in sorted((out / "selected").iterdir()):
        if path.suffix == ".parquet":
            texts += pq.read_table(path)["text"].to_pylist()
        else:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            texts += [json.loads(line)["text"] for line in content.splitlines()]
    return texts


class TestHistogram:
    @settings(deadline=None)
    @given(FLOATS)
    def test_bins_are_in_the_order_of_scores(self, scores: np.ndarray) -> None:
        bins = bins_of(scores)
        order = np.argsort(scores, kind="stable")
        assert (np.diff(bins[order].astype(np.int64)) >= 0).all()
        edges = np.array([lower_edge(int(bin)) for bin in bins])
        assert (edges <= scores).all()
        assert (np.abs(scores - edges) <= 2.0**-9 * np.abs(scores) + 1e-38).all()

    @settings(deadline=None)
    @given(FLOATS, st.integers(1, 4))
    def test_parts_add_up_to_the_whole(self, scores: np.ndarray, num_parts: int) -> None:
        domains, sizes = np.arange(len(scores)) % 3, np.arange(len(scores)) + 1
        whole = counted(domains, ["c", "a", "b"], scores, sizes)
        parts = [
            counted(domains[part], ["c", "a", "b"], scores[part], sizes[part])
            for part in np.array_split(np.arange(len(scores)), num_parts)
        ]
        assert added(parts).equals(added([whole]))
        assert added(parts[::-1]).equals(added([whole]))
        assert sum(whole["size"].to_pylist()) == sizes.sum()

    @pytest.mark.parametrize("held_rows", [1, 8, 2**20])
    @pytest.mark.parametrize("most_runs", [2, 64])
    def test_of_a_pool_is_the_sum_whatever_lies_on_disk_meanwhile(
        self, held_rows: int, most_runs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("direct_anneal.distill.histogram._HELD_ROWS", held_rows)
        monkeypatch.setattr("direct_anneal.distill.histogram._MOST_RUNS", most_runs)
        rng = np.random.default_rng(0)
        parts = [
            counted(
                rng.integers(3, size=6), [f"d{i}", "ü", "\U0001d538"], rng.normal(size=6).astype("f4"), np.full(6, 2)
            )
            for i in (4, 1, 3, 2, 0, 5)
        ]
        path = tmp_path / "histogram.parquet"
        domains = write_whole(parts, path, 8)
        assert pq.read_table(path).equals(added(parts))
        assert domains is not None
        assert [sum(counts) for counts in zip(*domains.values(), strict=True)] == [36, 72]
        pq.write_table(added(parts), tmp_path / "at-once.parquet", compression="zstd", row_group_size=2**16)
        assert path.read_bytes() == (tmp_path / "at-once.parquet").read_bytes()
        assert write_whole(parts, path, len(domains) - 1) is None
        assert pq.read_table(path).equals(added(relabelled(parts, ())))
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


class TestScores:
    def test_are_those_of_the_scorer(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        result = scored(scorer, pool, tmp_path / "out")
        assert result["documents"] == len(found := read_scores(tmp_path / "out")) == 80
        assert result["issues"] == {"bad-line": 1, "empty-text": 1, "no-text": 1}
        texts = [json.loads(line)["text"] for line in (pool / "plain-1.jsonl").read_text().splitlines()]
        wanted = read_scorer(scorer).scores(texts)
        assert [found["plain-1.jsonl", row] for row in range(15)] == wanted.tolist()
        assert {"prose", "code", "table", "packed-4", "packed-5"} == set(result["domains"])
        assert sum(documents for documents, _ in result["domains"].values()) == 80

    def test_of_tokens_are_those_of_the_scorer(self, tmp_path: Path) -> None:
        write_scorer(random_scorer("tokens"), tmp_path / "scorer")
        tokens = np.array([5, 6, 7, 0, 9, 0, 250, 3, 0], dtype=np.uint16)
        (tmp_path / "pool").mkdir()
        tokens.tofile(tmp_path / "pool" / "a.npy")
        out = tmp_path / "out"
        scored(tmp_path / "scorer", tmp_path / "pool", out, token_dtype="uint16", eos_id=0, num_samples=2, exact=True)
        found = pq.read_table(out / "scores" / "00000.parquet")
        bounds = np.concatenate([[0], np.cumsum(found["size"].to_numpy())])
        assert found["score"].to_pylist() == random_scorer("tokens").score_tokens(tokens, bounds).tolist()
        worst = int(np.argmin(found["score"].to_numpy()))
        kept = np.concatenate([tokens[bounds[i] : bounds[i + 1]] for i in range(3) if i != worst])
        assert np.fromfile(out / "selected" / "00000.npy", dtype=np.uint16).tolist() == kept.tolist()

    def test_blocks_row_groups_and_workers_change_no_byte(
        self, scorer: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scored(scorer, pool, tmp_path / "one", fraction=0.3, exact=True)
        scored(scorer, pool, tmp_path / "two", fraction=0.3, exact=True, workers=2)
        assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
        monkeypatch.setattr("direct_anneal.distill.parts._BLOCK_BYTES", 50)
        scored(scorer, pool, tmp_path / "small", fraction=0.3, exact=True)
        assert files_below(tmp_path / "one") == files_below(tmp_path / "small")

    def test_a_scorer_of_tokens_refuses_texts(self, pool: Path, tmp_path: Path) -> None:
        write_scorer(random_scorer("tokens"), tmp_path / "scorer")
        with pytest.raises(InputError, match="must hold documents that can be scored, but none can"):
            scored(tmp_path / "scorer", pool, tmp_path / "out")


class TestChoice:
    def test_is_the_best_of_the_pool(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        result = scored(scorer, pool, tmp_path / "out", fraction=0.25, exact=True)
        best = sorted(read_scores(tmp_path / "out").values(), reverse=True)[:20]
        texts = read_chosen(tmp_path / "out")
        assert result["chosen"]["documents"] == len(texts) == 20
        assert sorted(read_scorer(scorer).scores(texts).tolist(), reverse=True) == best

    def test_by_bins_stays_within_what_was_asked(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        chosen = scored(scorer, pool, tmp_path / "out", fraction=0.25)["chosen"]
        assert 15 <= chosen["documents"] <= 20
        assert len(read_chosen(tmp_path / "out")) == chosen["documents"]

    def test_of_tokens_counts_bytes_at_the_runs_rate(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        result = scored(scorer, pool, tmp_path / "out", num_tokens=300, exact=True)  # 0.25 tokens a byte
        assert result["chosen"]["size"] == sum(len(text.encode()) for text in read_chosen(tmp_path / "out"))
        assert 1000 < result["chosen"]["size"] <= 1200
        with pytest.raises(InputError, match="num_tokens must be at most the pool's, about"):
            merge(MergeConfig(run=str(tmp_path / "out"), num_tokens=10**9, workers=1))

    def test_another_size_takes_its_place(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        scored(scorer, pool, tmp_path / "out", fraction=0.5)
        merge(MergeConfig(run=str(tmp_path / "out"), num_samples=7, exact=True, workers=1))
        assert len(read_chosen(tmp_path / "out")) == 7
        scored(scorer, pool, tmp_path / "other", num_samples=7, exact=True)
        assert files_below(tmp_path / "out") == files_below(tmp_path / "other")


class TestJobs:
    def test_give_the_bytes_of_one_process(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        scored(scorer, pool, tmp_path / "one", fraction=0.3)
        for number in (2, 0, 1):
            scored(scorer, pool, tmp_path / "many", shards=f"{number}/3")
        merge(MergeConfig(run=str(tmp_path / "many"), fraction=0.3, workers=1))
        assert files_below(tmp_path / "one") == files_below(tmp_path / "many")

    def test_a_missing_one_is_named(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        for number in (0, 2):
            scored(scorer, pool, tmp_path / "out", shards=f"{number}/3")
        with pytest.raises(
            InputError,
            match=r"must hold the scores of all 7 sources, but 2 are missing .*\(1, 4\): run again the jobs 1 of 3",
        ):
            merge(MergeConfig(run=str(tmp_path / "out")))

    def test_damage_is_found_and_mended(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        scored(scorer, pool, tmp_path / "out")
        whole = files_below(tmp_path / "out")
        path = tmp_path / "out" / "scores" / "00003.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        (tmp_path / "out" / "scores" / "00004.json").unlink()
        with pytest.raises(InputError, match=r"2 are missing or damaged \(3, 4\): run score again without shards"):
            merge(MergeConfig(run=str(tmp_path / "out")))
        scored(scorer, pool, tmp_path / "out")
        assert files_below(tmp_path / "out") == whole

    def test_a_flipped_bit_in_any_record_or_table_is_refused_by_weights(
        self, scorer: Path, pool: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        scored(scorer, pool, out, fraction=0.3)
        names = [path for path in sorted(out.glob("scores/*.parquet")) if ".histogram." not in path.name]
        for path in [out / "selected.json", out / "histogram.parquet", *names[:2], names[0].with_suffix(".json")]:
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(InputError, match="must hold"):
                weights(WeightsConfig(run=out, to="nanotron"))
            path.write_bytes(whole)
        weights(WeightsConfig(run=out, to="nanotron"))

    def test_no_secret_of_an_address_is_written(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        named = pool.rename(tmp_path / "hf_AbCdEfGhIjKlMnOpQrStUv")
        first = scored(scorer, named, tmp_path / "out", fraction=0.3)
        assert first == scored(scorer, named, tmp_path / "out", fraction=0.3)
        assert not any(b"hf_AbCd" in path.read_bytes() for path in (tmp_path / "out").rglob("*.json"))

    def test_another_pool_or_scorer_is_refused(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        scored(scorer, pool, tmp_path / "out")
        write_scorer(random_scorer(seed=1), tmp_path / "other")
        with pytest.raises(InputError, match="must be of one pool, scorer and set of options"):
            scored(tmp_path / "other", pool, tmp_path / "out")
        (pool / "plain-3.jsonl").write_text('{"text": "new"}\n')
        with pytest.raises(InputError, match="must be of one pool"):
            merge(MergeConfig(run=str(tmp_path / "out")))
        scored(scorer, pool, tmp_path / "out", overwrite=True)
        assert len(read_scores(tmp_path / "out")) == 66

    def test_directories_of_others_are_left_alone(self, scorer: Path, pool: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="out must be new, empty or of an earlier score"):
            scored(scorer, pool, scorer)
        with pytest.raises(InputError, match="pool must lie outside out"):
            scored(scorer, pool, pool)
        with pytest.raises(InputError, match="must hold the scores of a pool"):
            merge(MergeConfig(run=str(pool)))

    @pytest.mark.parametrize("shards", ["3/3", "1", "a/b", "-1/2", "0/0", "1/2/3"])
    def test_shards_must_be_one_of_n(self, shards: str) -> None:
        with pytest.raises(InputError, match="shards must be I/N"):
            job_of(shards)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"shards": "0/2", "fraction": 0.1}, "shards must score alone"),
            ({"shards": "0/2", "overwrite": True}, "overwrite must be left out"),
            ({"fraction": 0.1, "num_samples": 1}, "must be given once"),
            ({"fraction": 1.5}, "fraction must be in"),
            ({"exact": True}, "exact must come with a size"),
            (
                {"floors": ["docs=0.9"], "ceilings": ["docs=0.1"], "fraction": 0.5},
                "floors must be at most the ceiling of docs, 0.1, got 0.9: lower it, or raise ceilings",
            ),
            ({"workers": 0}, "workers must be at least 1"),
        ],
    )
    def test_options_that_do_not_go_together(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(InputError, match=told):
            ScoreConfig(**{"scorer": "s", "pool": "p", "out": "o", **options})


class TestElsewhere:
    def test_a_pool_at_a_url_gives_the_same_scores_and_leaves_no_copy(
        self, scorer: Path, pool: Path, tmp_path: Path
    ) -> None:
        import fsspec

        system = fsspec.filesystem("memory")
        for path in pool.iterdir():
            system.pipe_file(f"/bucket/{path.name}", path.read_bytes())
        options: dict[str, Any] = {"scorer": scorer, "fraction": 0.3, "exact": True, "workers": 1}
        urls = [f"memory://bucket/{path.name}" for path in pool.iterdir()]
        score(ScoreConfig(pool=urls, out=tmp_path / "there", **options))
        score(ScoreConfig(pool=pool, out=tmp_path / "here", **options))
        assert read_scores(tmp_path / "there") == read_scores(tmp_path / "here")
        assert sorted(read_chosen(tmp_path / "there")) == sorted(read_chosen(tmp_path / "here"))
        assert {path.name for path in (tmp_path / "there").iterdir()} == {
            path.name for path in (tmp_path / "here").iterdir()
        }

    def test_a_secret_in_the_address_is_not_kept_and_merge_says_so(
        self, scorer: Path, pool: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        with serving(functools.partial(Quiet, directory=str(pool))) as port:
            urls = [f"http://user:pass-word@127.0.0.1:{port}/{path.name}" for path in pool.glob("*.jsonl")]
            options: dict[str, Any] = {"scorer": scorer, "out": out, "pool": urls, "workers": 1}
            score(ScoreConfig(**options, shards="0/1"))
            assert not any(b"pass-word" in content for content in files_below(out).values())
            with pytest.raises(InputError, match=r"must be known in full, but .* does not keep the secret") as refused:
                merge(MergeConfig(run=out, fraction=0.3))
            assert "pass-word" not in str(refused.value)
            assert "\n" not in str(refused.value)
            assert score(ScoreConfig(**options, fraction=0.3))["chosen"]["documents"] > 0
