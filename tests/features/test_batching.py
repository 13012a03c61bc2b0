"""Batches of a size that memory allows: found, halved where it does not, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.corpus_samples import prepared
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import FeatureStore, Local, batching, extract
from direct_anneal.gradients import GradientSketcher, Sketches
from features.extraction_runs import extracted, sketcher, store_for
from selection.tiny import CONTEXT, documents, files_below, write_jsonl

# Both sides are rounded to float16 entries below one, and their float32 sums are of other batches.
ROWS_ATOL = 2 * (2.0**-12 + 1e-6)
NORMS_RTOL = 1e-5

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


class Limited:
    """A sketcher whose memory holds `limit` padded tokens, and that may be interrupted at its n-th batch."""

    def __init__(
        self, real: GradientSketcher, limit: int, error: Exception = ERRORS[0], interrupted_at: int | None = None
    ) -> None:
        self.model, self.projection, self.device, self.reduction = (
            real.model,
            real.projection,
            real.device,
            real.reduction,
        )
        self.done: list[int] = []
        self.refused = 0
        self._real, self._limit, self._error, self._interrupted_at = real, limit, error, interrupted_at

    def sketch(self, ids: torch.Tensor, *more: Any) -> Sketches:
        if ids.numel() > self._limit:
            self.refused += 1
            raise self._error
        if len(self.done) == self._interrupted_at:
            raise KeyboardInterrupt
        self.done.append(ids.numel())
        return self._real.sketch(ids, *more)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Five shards of five rows but for the last. The first is the shortest, so that it fits where others do not."""
    records = sorted(documents(23, seed=1), key=lambda record: len(record["text"]))
    path = write_jsonl(tmp_path_factory.mktemp("pool") / "pool.jsonl", records)
    return prepared(tmp_path_factory.mktemp("corpus"), path)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(checkpoint, corpus, tmp_path_factory.mktemp("reference"))


def assert_same_features(store: FeatureStore, reference: FeatureStore) -> None:
    rows = [np.concatenate(one.features()).astype(np.float64) for one in (store, reference)]
    norms = [one.samples()["grad_norm"].to_numpy() for one in (store, reference)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=ROWS_ATOL)
    np.testing.assert_allclose(norms[0], norms[1], rtol=NORMS_RTOL)


def kept(store: FeatureStore) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.directory / "batches.json").read_text())
    return content


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}: {str(error)[:24]}")
@pytest.mark.parametrize("asked", [None, 10**6])
def test_what_does_not_fit_is_halved_once_and_for_all(
    checkpoint: Path, corpus: Corpus, reference: FeatureStore, tmp_path: Path, asked: int | None, error: Exception
) -> None:
    limited = Limited(sketcher(checkpoint), 130, error)
    store, amounts = store_for(corpus, tmp_path), list[int]()
    build: Any = lambda: limited  # noqa: E731 (it stands for a type)
    extract(corpus, store, Local(build), max_length=CONTEXT, batch_tokens=asked, advance=amounts.append)
    assert_same_features(store, reference)
    assert sum(amounts) == corpus.num_tokens.sum()
    assert kept(store)["asked"] == asked
    assert max(limited.done[-5:]) <= kept(store)["used"] <= 130
    assert 1 <= limited.refused <= 5, "each refusal halves, and none comes twice"
    (told,) = store.remarks()
    assert "did not fit into memory" in told


def test_where_all_fits_nothing_is_said(reference: FeatureStore) -> None:
    assert reference.remarks() == []
    found = kept(reference)
    assert (found["asked"], found["used"]) == (None, batching.BATCH_TOKENS)


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Shards before memory ran out have larger batches than those after; so they must in the second go."""
    limit = 5 * int(corpus.num_tokens[4])
    whole = Limited(sketcher(checkpoint), limit)
    build: Any = lambda: whole  # noqa: E731 (it stands for a type)
    extract(corpus, store_for(corpus, tmp_path / "whole"), Local(build), max_length=CONTEXT)
    assert whole.done[0] == limit, "the first shard must fit as one batch"
    assert whole.refused >= 1
    for moment in range(0, len(whole.done), 2):
        store = store_for(corpus, tmp_path / f"{moment}")
        first: Any = lambda moment=moment: Limited(sketcher(checkpoint), limit, interrupted_at=moment)  # noqa: E731
        with pytest.raises(KeyboardInterrupt):
            extract(corpus, store, Local(first), max_length=CONTEXT)
        second: Any = lambda: Limited(sketcher(checkpoint), limit)  # noqa: E731
        extract(corpus, store, Local(second), max_length=CONTEXT)
        assert files_below(store.directory) == files_below(tmp_path / "whole")


class OnceShort:
    """A sketcher that runs out of memory at its third batch, and at no other."""

    def __init__(self, real: GradientSketcher) -> None:
        self.model, self.projection, self.device, self.reduction = (
            real.model,
            real.projection,
            real.device,
            real.reduction,
        )
        self._real, self._left = real, 2

    def sketch(self, ids: torch.Tensor, *more: Any) -> Sketches:
        self._left -= 1
        if self._left == -1:
            raise torch.OutOfMemoryError
        return self._real.sketch(ids, *more)


def test_memory_that_runs_out_amid_a_shard_begins_it_again(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    """So that its bytes are those of the smaller size, and no token is counted twice."""
    store, amounts = store_for(corpus, tmp_path / "short", rows_per_shard=23), list[int]()
    build: Any = lambda: OnceShort(sketcher(checkpoint))  # noqa: E731 (it stands for a type)
    extract(corpus, store, Local(build), max_length=CONTEXT, batch_tokens=256, advance=amounts.append)
    assert min(amounts) < 0
    assert sum(amounts) == corpus.num_tokens.sum()
    used = kept(store)["used"]
    smaller = extracted(checkpoint, corpus, tmp_path / "smaller", rows_per_shard=23, batch_tokens=used)
    np.testing.assert_array_equal(store.features()[0], smaller.features()[0])


def test_a_size_that_was_found_is_not_looked_for_again(
    checkpoint: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = store_for(corpus, tmp_path), iter([100])
    monkeypatch.setattr("direct_anneal.features.extraction.found_batch_tokens", lambda *_: next(found))
    build: Any = lambda: Limited(sketcher(checkpoint), 10**6, interrupted_at=3)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        extract(corpus, store, Local(build), max_length=CONTEXT)
    second = Limited(sketcher(checkpoint), 10**6)
    again: Any = lambda: second  # noqa: E731
    extract(corpus, store, Local(again), max_length=CONTEXT)
    assert max(second.done) <= 100


def test_a_window_that_does_not_fit_is_told_with_what_to_do(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    build: Any = lambda: Limited(sketcher(checkpoint), CONTEXT - 1)  # noqa: E731
    with pytest.raises(InputError, match=r"one window of 64 tokens must fit into memory.*max_length"):
        extract(corpus, store_for(corpus, tmp_path), Local(build), max_length=CONTEXT)


def test_other_errors_are_no_matter_of_memory(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    build: Any = lambda: Limited(sketcher(checkpoint), 0, RuntimeError("a bug"))  # noqa: E731
    with pytest.raises(RuntimeError, match="a bug"):
        extract(corpus, store_for(corpus, tmp_path), Local(build), max_length=CONTEXT)


class Device:
    """A GPU of so many bytes, of which a model takes some and each token of a batch some more."""

    def __init__(self, total: int, held: int, per_token: int) -> None:
        self.device = torch.device("cuda")
        self.batches: list[tuple[int, ...]] = []
        self._total, self._held, self._per_token, self._peak = total, held, per_token, held

    def sketch(self, ids: torch.Tensor, *more: Any) -> None:
        needed = self._held + self._per_token * ids.numel()
        if needed > self._total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(tuple(ids.shape))
        self._peak = max(self._peak, needed)

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self._held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self._peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "_peak", self._held))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=self._total)
        )
        return self


class TestFinding:
    longest = np.zeros(64, dtype=np.int64)

    @pytest.mark.parametrize(
        ("total", "held", "per_token", "found"),
        [
            (100_000_000, 20_000_000, 1_000, 32768),  # 60,000,000 bytes for 60,000 tokens
            (100_000_000, 20_000_000, 100, 524288),
            (5_000_000, 1_000_000, 2_000, 1024),  # 2,048 tokens do not fit, 1,500 do
            (1_000_000, 500_000, 5_000, 64),  # nor do two windows
        ],
    )
    def test_on_a_gpu_it_is_measured(
        self, monkeypatch: pytest.MonkeyPatch, total: int, held: int, per_token: int, found: int
    ) -> None:
        device = Device(total, held, per_token).installed(monkeypatch)
        assert batching.found_batch_tokens(device, self.longest) == found
        assert held + per_token * found <= total
        assert device.batches[0] == (1, 64)  # whatever the first call does beside sketching is not measured

    def test_a_gpu_too_small_for_one_window_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Device(1_000, 900, 10).installed(monkeypatch)
        with pytest.raises(InputError, match="must fit into memory"):
            batching.found_batch_tokens(device, self.longest)
