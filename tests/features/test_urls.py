"""Stores at URLs: the same bytes as in a directory, committed by the same order of writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest

from data.corpus_samples import prepared
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import Documents, FeatureStore, Local, extract, is_url, place_at, verify
from direct_anneal.features.storage import Url
from direct_anneal.selection import select_again
from features.extraction_runs import extracted, sketcher, store_for
from features.object_store import BUCKET, bucket, objects_below
from selection.pools import chosen, write_world
from selection.tiny import CONTEXT, documents, files_below, write_jsonl


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with bucket() as url:
        yield url


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("corpus")
    parts = [write_jsonl(directory / f"{part}.jsonl", documents(12, seed=part, prefix=f"{part}-")) for part in range(2)]
    return prepared(directory / "corpus", *parts)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(checkpoint, corpus, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("place", "url"),
    [
        *((name, True) for name in ("s3://b/a", "simplecache::s3://b", "gs://b")),
        *((name, False) for name in ("/a/b", "a", "file:///a/b", "C:/a", "./s3:/a")),
    ],
)
def test_what_is_a_url(place: str, url: bool) -> None:
    assert is_url(place) == url


def test_a_kind_of_url_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match=r"URL that fsspec can open, but nowhere://a"):
        place_at("nowhere://a")


class TestInABucket:
    def test_a_store_is_the_same_files_as_in_a_directory(
        self, checkpoint: Path, corpus: Corpus, reference: FeatureStore, s3: str
    ) -> None:
        store = extracted(checkpoint, corpus, f"{s3}/same")
        assert objects_below("same") == files_below(Path(reference.directory))
        np.testing.assert_array_equal(np.concatenate(store.features()), np.concatenate(reference.features()))
        assert store.samples() == reference.samples()
        assert FeatureStore.open(f"{s3}/same").missing() == []

    def test_killed_between_any_two_writes_it_goes_on_to_the_same_bytes(
        self, checkpoint: Path, corpus: Corpus, s3: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ready = sketcher(checkpoint)
        extract(corpus, store_for(corpus, f"{s3}/whole", 12), Local(lambda: ready), max_length=CONTEXT)
        whole = objects_below("whole")
        write = Url.write
        for moment in range(len(whole)):
            written: list[str] = []

            def dying(place: Url, name: str, content: bytes, moment: int = moment, written: Any = written) -> None:
                if len(written) == moment:
                    raise KeyboardInterrupt
                write(place, name, content)
                written.append(name)

            with monkeypatch.context() as patch:
                patch.setattr(Url, "write", dying)
                with pytest.raises(KeyboardInterrupt):
                    extract(corpus, store_for(corpus, f"{s3}/{moment}", 12), Local(lambda: ready), max_length=CONTEXT)
            assert len(objects_below(f"{moment}")) == moment
            extract(corpus, store_for(corpus, f"{s3}/{moment}", 12), Local(lambda: ready), max_length=CONTEXT)
            assert objects_below(f"{moment}") == whole

    @pytest.mark.parametrize("suffix", ["npy", "parquet", "json"])
    def test_damage_is_found_and_just_that_shard_made_again(
        self, checkpoint: Path, corpus: Corpus, reference: FeatureStore, s3: str, suffix: str
    ) -> None:
        extracted(checkpoint, corpus, f"{s3}/{suffix}")
        before = objects_below(suffix)
        name = f"features-00002.{suffix}"
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{suffix}/{name}", Body=before[name][:-3])
        store = store_for(corpus, f"{s3}/{suffix}")
        assert store.missing() == [2]
        extract(corpus, store, Local(lambda: sketcher(checkpoint)), max_length=CONTEXT)
        assert objects_below(suffix) == before

    def test_another_fingerprint_is_refused_or_replaced(self, checkpoint: Path, corpus: Corpus, s3: str) -> None:
        store = extracted(checkpoint, corpus, f"{s3}/other")
        boto3.client("s3").put_object(Bucket=BUCKET, Key="other/mine.txt", Body=b"mine")
        sizes = {"num_samples": corpus.num_samples, "sketch_size": 8, "fingerprint": {"data": "another"}}
        with pytest.raises(InputError, match=r"s3://features/other holds features of another run"):
            FeatureStore(store.directory, **sizes)
        FeatureStore(store.directory, **sizes, replace=True)
        assert objects_below("other").keys() == {"store.json", "mine.txt"}


class TestSelecting:
    def test_features_in_a_bucket_give_the_same_and_are_fetched(
        self, checkpoint: Path, world: Path, tmp_path: Path, s3: str
    ) -> None:
        far = chosen(checkpoint, world, tmp_path / "far", features=f"{s3}/run/")
        near = chosen(checkpoint, world, tmp_path / "near")
        names = ("selection.parquet", "features/pool/features-00000.npy", "features/validation/batches.json")
        for name in names:
            assert (far.out / name).read_bytes() == (near.out / name).read_bytes()
        assert list(verify(far.out / "features" / "pool")) == []
        kept = {name: content for name, content in objects_below("run/pool").items() if name.startswith("features")}
        assert kept.items() <= files_below(far.out / "features" / "pool").items()
        again = select_again(far.out, out=tmp_path / "again", fraction=0.25)
        assert again.manifest["objective"] == far.manifest["objective"]

    def test_a_bucket_that_is_not_there_is_told(self, checkpoint: Path, world: Path, tmp_path: Path, s3: str) -> None:
        with pytest.raises(InputError, match=r"features must be a place that can be read and written, but .*bucket"):
            chosen(checkpoint, world, tmp_path / "out", features="s3://nowhere/run")


class TestDocuments:
    def test_they_come_back_from_bytes(self, corpus: Corpus) -> None:
        for rows in (range(5), range(10, 24), range(23, 24)):
            documents = Documents.of(corpus, rows)
            back = Documents.from_bytes(bytes(documents.to_bytes()))
            assert back.samples.equals(documents.samples, check_metadata=True)
            np.testing.assert_array_equal(back.num_prompt, documents.num_prompt)
            assert len(back.tokens) == len(rows)
            for row, tokens in zip(rows, back.tokens, strict=True):
                assert tokens.dtype == np.int64
                np.testing.assert_array_equal(tokens, corpus.tokens(row))

    def test_they_name_no_files_but_their_own(self, corpus: Corpus) -> None:
        """Or every sidecar of a pool of a million files would list them all."""
        source = Documents.of(corpus, range(5)).samples["source"].combine_chunks()
        assert isinstance(source, pa.DictionaryArray)
        assert len(source.dictionary) == 1
