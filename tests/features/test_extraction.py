"""From documents to shards: what a row is, and that no interruption changes a byte of it."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.corpus_samples import prepared
from direct_anneal.data import Corpus, Fields
from direct_anneal.features import FeatureStore, Local, SketchedGradients, extract
from direct_anneal.gradients import GradientSketcher, Sketches
from direct_anneal.model.checkpoint import Checkpoint, DtypeName
from features.extraction_runs import extract_until_killed, extracted, sketcher, store_for
from gradients.tiny_models import exact_gradients, explicit_matrix
from selection.tiny import CONTEXT, POISON, SKETCH_SIZE, documents, files_below, start, write_checkpoint, write_jsonl

NUM_DOCUMENTS = 23  # five shards of five rows, the last one short
STEPS = 3 * (2 + 5 * 3)  # of writing: three for each file, which are a header, the batches' size, three for each shard

# A unit row is rounded to float16: entries below one are off by at most 2⁻¹², and float32 sums by far less.
FLOAT16_ATOL = 2.0**-12 + 1e-6
# Sums in float32 over batches of another shape: the order of addition differs, a few hundred terms each.
FLOAT32_RTOL = 1e-5


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("pool") / "pool.jsonl", documents(NUM_DOCUMENTS, seed=1))


@pytest.fixture(scope="module")
def corpus(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepared(tmp_path_factory.mktemp("corpus"), pool)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The store of an extraction that nothing interrupted."""
    return extracted(checkpoint, corpus, tmp_path_factory.mktemp("reference"))


def rows(store: FeatureStore) -> np.ndarray:
    return np.concatenate(store.features()).astype(np.float64)


def test_a_document_is_the_mean_of_its_windows_by_predicted_tokens(
    checkpoint: Path, corpus: Corpus, reference: FeatureStore
) -> None:
    assert corpus.num_tokens.max() > CONTEXT, "the fixture must hold a document of several windows"
    one_by_one = sketcher(checkpoint)
    table = reference.samples()
    for document in range(corpus.num_samples):
        tokens = corpus.tokens(document)
        total, nats, predicted = np.zeros(SKETCH_SIZE), 0.0, 0
        for first in range(0, len(tokens), CONTEXT):
            window = tokens[first : first + CONTEXT]
            sketches = one_by_one.sketch(torch.from_numpy(window)[None])
            total += (len(window) - 1) * sketches.values[0].double().numpy()
            nats += (len(window) - 1) * sketches.losses[0].item()
            predicted += len(window) - 1
        mean = total / predicted
        norm = np.linalg.norm(mean)
        np.testing.assert_allclose(rows(reference)[document], mean / norm, rtol=0, atol=FLOAT16_ATOL)
        np.testing.assert_allclose(table["grad_norm"][document].as_py(), norm, rtol=FLOAT32_RTOL)
        np.testing.assert_allclose(table["loss"][document].as_py(), nats / predicted, rtol=FLOAT32_RTOL)


def test_a_last_window_of_one_token_predicts_nothing_and_counts_for_nothing(checkpoint: Path, tmp_path: Path) -> None:
    text = "x" * CONTEXT
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"text": text}, {"text": text + "y"}])
    store = extracted(checkpoint, prepared(tmp_path / "corpus", pool), tmp_path / "store")
    np.testing.assert_array_equal(rows(store)[0], rows(store)[1])
    assert store.samples()["num_tokens"].to_pylist() == [CONTEXT, CONTEXT + 1]


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
def test_batches_change_nothing_but_rounding(
    checkpoint: Path, corpus: Corpus, reference: FeatureStore, tmp_path: Path, batch_tokens: int
) -> None:
    store = extracted(checkpoint, corpus, tmp_path, batch_tokens=batch_tokens)
    # Twice the distance from the truth: both sides are rounded.
    np.testing.assert_allclose(rows(store), rows(reference), rtol=0, atol=2 * FLOAT16_ATOL)
    np.testing.assert_allclose(
        store.samples()["grad_norm"].to_numpy(), reference.samples()["grad_norm"].to_numpy(), rtol=FLOAT32_RTOL
    )


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_a_model_in_half_precision_gives_the_same_to_its_digits(
    checkpoint: Path, corpus: Corpus, reference: FeatureStore, tmp_path: Path, dtype: DtypeName, digits: int
) -> None:
    store = store_for(corpus, tmp_path)
    build = lambda: GradientSketcher(Checkpoint(str(checkpoint)).load_model("cpu", dtype), SKETCH_SIZE)  # noqa: E731
    extract(corpus, store, Local(build), max_length=CONTEXT)
    # Some ten operations in a row round to 2⁻ᵈ⁻¹ of their results; a third of the sum was seen.
    np.testing.assert_allclose(rows(store), rows(reference), rtol=0, atol=10 * 2.0 ** (-digits - 1))
    assert store.samples()["reason"].null_count == corpus.num_samples
    assert not np.array_equal(rows(store), rows(reference)), "the model must have run in half precision"


def test_rows_have_unit_norm_and_keep_the_corpus_order(corpus: Corpus, reference: FeatureStore) -> None:
    # Rounding moves each of R entries by a relative 2⁻¹¹ at most, and so does it the norm.
    np.testing.assert_allclose(np.linalg.norm(rows(reference), axis=1), 1.0, rtol=2.0**-11)
    for name in ("id", "source", "row", "domain", "num_tokens"):
        assert reference.samples()[name].to_pylist() == corpus.index[name].to_pylist()


def test_the_sketcher_is_built_once_and_only_for_what_is_missing(
    checkpoint: Path, corpus: Corpus, tmp_path: Path
) -> None:
    built = []

    def build() -> GradientSketcher:
        built.append(1)
        return sketcher(checkpoint)

    store = store_for(corpus, tmp_path)
    extract(corpus, store, Local(build), max_length=CONTEXT)
    assert len(built) == 1
    extract(corpus, store, Local(build), max_length=CONTEXT)
    assert len(built) == 1


def test_progress_counts_every_token_once_resumed_or_not(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    for removed in ([0, 1, 2, 3, 4], [1, 3], []):
        store = store_for(corpus, tmp_path)
        for shard in removed:
            (tmp_path / f"features-{shard:05d}.json").unlink(missing_ok=True)
        amounts: list[int] = []
        extract(corpus, store, Local(lambda: sketcher(checkpoint)), max_length=CONTEXT, advance=amounts.append)
        assert sum(amounts) == corpus.num_tokens.sum()


def test_of_a_prompt_nothing_is_predicted(checkpoint: Path, tmp_path: Path) -> None:
    """Against plain autograd, a window at a time in float64, and an explicit S."""
    text = "the boy ran and saw the tree, " * 8
    cuts = [0, 1, 20, CONTEXT - 1, CONTEXT, CONTEXT + 5, 2 * CONTEXT, 150]  # some in the second and third window
    records = [{"question": text[:cut], "text": text[cut : max(cut + 2, 40 + 7 * cut % 90)]} for cut in cuts]
    records.append({"question": text[:CONTEXT], "text": "xy"})  # its first token begins a window, as none else does
    pool = write_jsonl(tmp_path / "pool.jsonl", records)
    corpus = prepared(tmp_path / "corpus", pool, fields=Fields(prompt="question"), max_length=CONTEXT)
    assert corpus.num_prompt.tolist() == [*cuts, CONTEXT]
    store = extracted(checkpoint, corpus, tmp_path / "store")
    applied = sketcher(checkpoint)
    projection, model = explicit_matrix(applied), applied.model.double()
    table = store.samples()
    for document, record in enumerate(records):
        tokens = torch.from_numpy(corpus.tokens(document))
        assert len(tokens) == len(record["question"] + record["text"])
        labels = tokens.clone()
        labels[: len(record["question"])] = -100
        total, predicted = 0.0, 0
        for window, wanted in zip(tokens.split(CONTEXT), labels.split(CONTEXT), strict=True):
            count = int((wanted[1:] != -100).sum())
            total = total + count * exact_gradients(model, [window], [wanted])[0]
            predicted += count
        mean = projection @ (total / predicted)
        norm = np.linalg.norm(mean)
        np.testing.assert_allclose(rows(store)[document], mean / norm, rtol=0, atol=FLOAT16_ATOL)
        np.testing.assert_allclose(table["grad_norm"][document].as_py(), norm, rtol=FLOAT32_RTOL)


def test_the_faintest_gradient_still_has_a_unit_row(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Below float32's smallest normal number, where a row of another norm would not pass for a whole one."""

    class Faint:
        def __init__(self, real: GradientSketcher) -> None:
            self.projection, self.device, self.reduction, self.model = (
                real.projection,
                real.device,
                real.reduction,
                real.model,
            )
            self._real = real

        def sketch(self, *args: Any) -> Sketches:
            sketches = self._real.sketch(*args)
            return dataclasses.replace(sketches, values=sketches.values * 1e-40)

    store = store_for(corpus, tmp_path)
    build: Callable[[], Any] = lambda: Faint(sketcher(checkpoint))  # noqa: E731 (it stands for a type)
    extract(corpus, store, Local(build), max_length=CONTEXT)
    assert 0 < store.samples()["grad_norm"].to_numpy().min() < np.finfo(np.float32).tiny
    assert store.missing() == []


class _Interrupted:
    """A sketcher that is interrupted at its n-th batch."""

    def __init__(self, real: GradientSketcher, after: int) -> None:
        self.projection, self.device, self.reduction, self.model = (
            real.projection,
            real.device,
            real.reduction,
            real.model,
        )
        self._real, self._left = real, after

    def sketch(self, *args: Any) -> Sketches:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._real.sketch(*args)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_between_shards_it_goes_on_to_the_same_bytes(
    checkpoint: Path, corpus: Corpus, reference: FeatureStore, tmp_path: Path, after: int
) -> None:
    store = store_for(corpus, tmp_path)
    build: Callable[[], Any] = lambda: _Interrupted(sketcher(checkpoint), after)  # noqa: E731 (it stands for a type)
    with pytest.raises(KeyboardInterrupt):
        extract(corpus, store, Local(build), max_length=CONTEXT)
    assert len(store.missing()) == 5 - after  # a shard is one batch here
    extracted(checkpoint, corpus, tmp_path)
    assert files_below(tmp_path) == files_below(reference.directory)


def _moments() -> list[int]:
    """Three at random over the whole of the writing, and the last: all is there but the name of the last record."""
    rng = random.Random(20)
    edges = [STEPS * third // 3 for third in range(4)]
    return [*(rng.randrange(first, stop) for first, stop in pairwise(edges)), STEPS - 1]


@pytest.mark.parametrize("moment", _moments())
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    checkpoint: Path, pool: Path, corpus: Corpus, reference: FeatureStore, tmp_path: Path, moment: int
) -> None:
    process = start(extract_until_killed, checkpoint, pool, tmp_path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    committed = (moment // 3 - 2) // 3  # shards, of three files each, after the header and the batches' size
    assert len(list((tmp_path / "store").glob("features-*.json"))) == max(committed, 0)
    extracted(checkpoint, corpus, tmp_path / "store")
    assert files_below(tmp_path / "store") == files_below(reference.directory)


class TestGradientsThatAreNone:
    @pytest.fixture(scope="class")
    @classmethod
    def poisoned(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "poisoned", poisoned=True)

    @pytest.fixture
    def ill(self, tmp_path: Path) -> Corpus:
        """The byte tokenizer of this corpus is not the checkpoint's: the token of `POISON` is written out."""
        token = 33 if POISON == "!" else ord(POISON) - 33  # the tiny tokenizer counts printable ASCII from "!"
        records: list[dict[str, Any]] = [
            {"id": f"d{i}", "input_ids": [(5 * i + j) % 60 for j in range(8 + i)]} for i in range(7)
        ]
        for i in (2, 5, 6):  # within a batch, and a shard of its own
            records[i]["input_ids"][3] = token
        return prepared(tmp_path / "corpus", write_jsonl(tmp_path / "pool.jsonl", records))

    def test_they_are_zero_rows_recorded_and_harm_no_other(
        self, poisoned: Path, checkpoint: Path, ill: Corpus, tmp_path: Path
    ) -> None:
        store = extracted(poisoned, ill, tmp_path / "poisoned", rows_per_shard=3)
        healthy = extracted(checkpoint, ill, tmp_path / "healthy", rows_per_shard=3)
        assert store.samples()["reason"].to_pylist() == [None, None, "nan", None, None, "nan", "nan"]
        usable = store.samples()["reason"].is_null().to_numpy()
        assert not rows(store)[~usable].any()
        assert not np.isfinite(store.samples()["loss"].to_numpy()[~usable]).any()
        np.testing.assert_allclose(rows(store)[usable], rows(healthy)[usable], rtol=0, atol=2 * FLOAT16_ATOL)
        assert healthy.samples()["reason"].to_pylist() == [None] * 7

    def test_loading_drops_them(self, poisoned: Path, ill: Corpus, tmp_path: Path) -> None:
        gradients = SketchedGradients.load(extracted(poisoned, ill, tmp_path / "store", rows_per_shard=3), ill.index)
        assert gradients.samples["id"].to_pylist() == ["d0", "d1", "d3", "d4"]
        assert gradients.quarantined["id"].to_pylist() == ["d2", "d5", "d6"]
        assert np.isfinite(gradients.dense()).all()
