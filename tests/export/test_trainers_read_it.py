"""Exports read by trainers' own libraries, and their files by our readers.

The libraries are heavy, and at odds with each other's dependencies: `make test-formats` gives them an environment of
their own. Elsewhere each of these tests is skipped, and says so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from direct_anneal.data import TokenLayout, expand
from direct_anneal.export import export
from export.exported import EOS, expected, provenance, with_end
from selection.tiny import VOCAB_SIZE

DOCUMENTS = [[5, 6, 7, EOS], [8, EOS], [9, 10, 11, 12, 13, EOS]]


def library(name: str) -> Any:
    """The trainer's library, or a skip that says what to do."""
    return pytest.importorskip(name, reason=f"{name.partition('.')[0]} is not installed here: make test-formats")


def in_order(run: Path, out: Path) -> list[list[int]]:
    """The chosen documents with their end tokens, in the order of the export."""
    tokens = expected(run)
    return [with_end(tokens[row["id"]]) for row in provenance(out)]


def joined(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


def ours(path: Path) -> list[list[int]]:
    [source] = expand([str(path)], "pool", TokenLayout(dtype="uint16", eos_id=EOS))
    return [record["input_ids"].tolist() for _, record in source.records()]


def run_snippet(text: str, **names: str) -> dict[str, Any]:
    """The snippet as a user would run it, with the places filled that it leaves open."""
    for name, value in names.items():
        text = text.replace(name, value)
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope


def test_datasets_loads_the_tokenised_set(run, tmp_path):
    export(run, to="hf", out=tmp_path / "out", shard_size=4000)
    rows = datasets.load_from_disk(tmp_path / "out")
    assert rows["input_ids"][:] == in_order(run, tmp_path / "out")
    assert rows["id"][:] == [row["id"] for row in provenance(tmp_path / "out")]


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_datasets_loads_records_by_the_snippet(run, tmp_path, monkeypatch, to):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    record = export(run, to=to, out=tmp_path / "out", shard_size=1500)
    train = run_snippet(record["snippet"])["train"]
    assert train["id"][:] == [row["id"] for row in provenance(tmp_path / "out")]


def test_datasets_mixes_by_the_snippet(run, tmp_path):
    export(run, to="hf", out=tmp_path / "stable")
    record = export(run, to="hf", out=tmp_path / "out", mixture_share=0.3)
    snippet = record["snippet"].partition("collator =")[0]
    assert len(run_snippet(snippet, STABLE=str(tmp_path / "stable"))["train"]) > 0


class TestMegatron:
    def test_reads_documents_and_their_bounds(self, run, tmp_path):
        indexed = library("megatron.core.datasets.indexed_dataset")
        record = export(run, to="megatron", out=tmp_path / "out", shard_size=1500)
        documents = []
        for name in record["files"]:
            dataset = indexed.IndexedDataset(str(tmp_path / "out" / name.removesuffix(".bin")))
            assert dataset.index.dtype == indexed.DType.optimal_dtype(VOCAB_SIZE)
            assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
            documents += [dataset[i].tolist() for i in range(len(dataset))]
        assert documents == in_order(run, tmp_path / "out")

    def test_trains_on_windows_of_them(self, run, tmp_path):
        indexed = library("megatron.core.datasets.indexed_dataset")
        gpt = library("megatron.core.datasets.gpt_dataset")
        enums = library("megatron.core.datasets.utils")
        export(run, to="megatron", out=tmp_path / "out")
        config = gpt.GPTDatasetConfig(
            random_seed=0,
            sequence_length=32,
            blend=([str(tmp_path / "out" / "part-00000")], None),
            split="100,0,0",
            path_to_cache=str(tmp_path / "cache"),
            tokenizer=_Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            mid_level_dataset_surplus=0.005,
        )
        low = indexed.IndexedDataset(str(tmp_path / "out" / "part-00000"))
        dataset = gpt.GPTDataset(low, None, np.arange(len(low), dtype=np.int32), 20, enums.Split.train, config)
        sizes = {len(dataset[i]["tokens"]) for i in range(20)}
        assert sizes == {32}
        text = set(joined(in_order(run, tmp_path / "out")))
        assert set(joined([dataset[i]["tokens"].tolist() for i in range(20)])) <= text

    def test_what_it_writes_is_a_pool(self, tmp_path):
        indexed = library("megatron.core.datasets.indexed_dataset")
        for dtype in (np.uint16, np.int32, np.int64):
            path = tmp_path / f"{np.dtype(dtype).name}.bin"
            builder = indexed.IndexedDatasetBuilder(str(path), dtype=dtype)
            for document in DOCUMENTS:
                builder.add_document(torch.tensor(document), [len(document)])
            builder.finalize(str(path.with_suffix(".idx")))
            assert ours(path) == DOCUMENTS


class _Tokenizer:
    """Tokenizer as Megatron's data set needs it."""

    eod = EOS
    pad = EOS
    vocab_size = VOCAB_SIZE
    unique_identifiers: Any = {"class": "bytes"}  # noqa: RUF012 (read, never changed)


class TestDatatrove:
    def test_reads_the_windows_that_nanotron_trains_on(self, run, tmp_path):
        library("datatrove")
        dataset = library("datatrove.utils.dataset")
        record = export(run, to="nanotron", out=tmp_path / "out", shard_size=1500)
        folder = dataset.DatatroveFolderDataset(
            str(tmp_path / "out"), seq_len=9, filename_pattern="*.ds", token_size=2, return_positions=True
        )
        wanted, positions = [], []
        for name in record["files"]:
            lengths = [row["num_tokens"] for row in provenance(tmp_path / "out") if row["file"] == name]
            tokens = joined([d for d, r in _zipped(run, tmp_path / "out") if r["file"] == name])
            starts = joined([list(range(length)) for length in lengths])
            wanted += [tokens[i : i + 10] for i in range(0, len(tokens) - 9, 10)]
            positions += [starts[i : i + 10] for i in range(0, len(tokens) - 9, 10)]
        assert [folder[i]["input_ids"].tolist() for i in range(len(folder))] == wanted
        # Within a document that began in an earlier window, datatrove counts from the window's start.
        for i, starts in enumerate(positions):
            found = folder[i]["positions"].tolist()
            first = starts.index(0) if 0 in starts else 10
            assert found == list(range(first)) + starts[first:]

    def test_what_it_writes_is_a_pool(self, tmp_path):
        tokenizer = library("datatrove.pipeline.tokens.tokenizer")
        for size in (2, 4):
            file = tokenizer.TokenizedFile(
                str(tmp_path), f"{size}.ds", tokenizer_name_or_path="a/b", save_final_metadata=True, token_size=size
            )
            for document in DOCUMENTS:
                file.write(document, None)
            file.close()
            assert ours(tmp_path / f"{size}.ds") == DOCUMENTS


def _zipped(run: Path, out: Path) -> list[tuple[list[int], dict[str, Any]]]:
    return list(zip(in_order(run, out), provenance(out), strict=True))


class TestOlmoCore:
    def test_finds_the_documents_by_end_token_and_by_metadata(self, run, tmp_path):
        utils = library("olmo_core.data.utils")
        record = export(run, to="olmo-core", out=tmp_path / "out", shard_size=1500)
        by_token, by_metadata = [], []
        for name in record["files"]:
            path = tmp_path / "out" / name
            tokens = np.memmap(path, np.uint16, "r")
            for found, options in (
                (by_token, {"eos_token_id": EOS, "dtype": np.uint16}),
                (by_metadata, {"use_array_if_local": False, "dtype": np.uint16}),
            ):
                found += [tokens[a:b].tolist() for a, b in utils.iter_document_indices(str(path), **options)]
        documents = in_order(run, tmp_path / "out")
        assert by_metadata == documents
        # Some documents hold the end token inside; these are what the metadata is for.
        assert joined(by_token) == joined(documents)

    def test_trains_by_the_snippet(self, run, tmp_path):
        library("olmo_core.data")
        record = export(run, to="olmo-core", out=tmp_path / "out", sequence_length=32)
        dataset = run_snippet(record["snippet"], WORK_DIR=str(tmp_path))["dataset"].build()
        dataset.prepare()
        tokens = joined(in_order(run, tmp_path / "out"))
        assert joined([dataset[i]["input_ids"].tolist() for i in range(len(dataset))]) == tokens[: 32 * len(dataset)]
        assert len(dataset) == len(tokens) // 32

    def test_mixes_by_the_snippet(self, run, tmp_path):
        library("olmo_core.data")
        (tmp_path / "stable").mkdir()
        np.tile([7] * 31 + [EOS], 100).astype("<u2").tofile(tmp_path / "stable" / "a.npy")
        record = export(run, to="olmo-core", out=tmp_path / "out", sequence_length=32, mixture_share=0.25)
        scope = run_snippet(
            record["snippet"],
            WORK_DIR=str(tmp_path),
            STABLE=str(tmp_path / "stable"),
            NUM_TOKENS="2560",
            BATCH_TOKENS="320",
        )
        dataset = scope["dataset"].build()
        dataset.prepare()
        stable = sum(bool((dataset[i]["input_ids"][:31] == 7).all()) for i in range(len(dataset)))
        assert stable == 60
        assert len(dataset) == 80


class TestStreaming:
    @pytest.fixture
    def streaming(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        # These two need torchvision, which PyPI has for CUDA alone; text does not.
        for name in ("streaming.vision", "streaming.multimodal"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        return library("streaming")

    @pytest.mark.parametrize("shard_size", [1500, 2**26])
    def test_reads_sequences_of_equal_length(self, run, tmp_path, streaming, shard_size):
        export(run, to="mds", out=tmp_path / "out", sequence_length=32, shard_size=shard_size)
        dataset = streaming.LocalDataset(str(tmp_path / "out"))
        samples = [dataset[i]["tokens"] for i in range(len(dataset))]
        assert {sample.dtype for sample in samples} == {np.dtype("uint16")}
        assert {len(sample) for sample in samples[:-1]} == {32}
        assert joined([sample.tolist() for sample in samples]) == joined(in_order(run, tmp_path / "out"))

    def test_writes_the_same_bytes(self, run, tmp_path, streaming):
        export(run, to="mds", out=tmp_path / "out", sequence_length=32)
        tokens = joined(in_order(run, tmp_path / "out"))
        with streaming.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=str(tmp_path / "theirs")) as writer:
            for start in range(0, len(tokens), 32):
                writer.write({"tokens": np.array(tokens[start : start + 32], np.uint16)})
        for name in ("index.json", "shard.00000.mds"):
            assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
