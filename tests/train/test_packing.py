"""Windows against the stream that they are cut from, built here document by document."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.train import PackedWindows, Part
from selection.tiny import documents, write_jsonl
from train.annealing_runs import WINDOW, corpus_of, write_data

SEPARATOR = 0  # the tiny vocabulary's "!", which no document here holds


@pytest.fixture(scope="module")
def corpus(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("packing")
    return corpus_of(checkpoint, write_data(directory / "data.jsonl"), directory / "corpus")


@pytest.fixture(scope="module")
def other(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("other")
    return corpus_of(checkpoint, write_data(directory / "mix.jsonl", count=30, seed=6), directory / "corpus")


def packed(*parts: Part, num_windows: int, **options: Any) -> PackedWindows:
    return PackedWindows(
        parts, **({"num_windows": num_windows, "window": WINDOW, "separator": None, "seed": 0} | options)
    )


def stream(windows: PackedWindows) -> NDArray[np.int64]:
    return np.concatenate([windows[i]["input_ids"].numpy() for i in range(len(windows))])


def whole_epochs(corpus: Corpus, epochs: int) -> int:
    """Windows that cover this many epochs, the last of them reaching into the next one."""
    return -(-epochs * int(corpus.num_tokens.sum()) // WINDOW)


def is_made_of(tokens: NDArray[np.int64], texts: list[bytes]) -> bool:
    """True if the tokens are these texts end to end in some order, each once (longest match, no text is a prefix)."""
    left, rest = Counter(texts), tokens.astype(np.uint8).tobytes()
    while rest:
        fitting = [text for text in left if left[text] and rest.startswith(text)]
        if not fitting:
            return False
        longest = max(fitting, key=len)
        left[longest] -= 1
        rest = rest[len(longest) :]
    return not left.total()


def content(corpus: Corpus, separator: bytes = b"") -> list[bytes]:
    return [corpus.tokens(i).astype(np.uint8).tobytes() + separator for i in range(corpus.num_samples)]


def test_an_epoch_is_every_document_once(corpus: Corpus) -> None:
    windows = packed(Part(corpus), num_windows=whole_epochs(corpus, 2), separator=SEPARATOR)
    assert windows.epoch_tokens == corpus.num_tokens.sum() + corpus.num_samples
    epoch = stream(windows)[: windows.epoch_tokens]
    assert is_made_of(epoch, content(corpus, bytes([SEPARATOR])))


def test_epochs_have_orders_of_their_own(corpus: Corpus) -> None:
    windows = packed(Part(corpus), num_windows=whole_epochs(corpus, 2))
    tokens, size = stream(windows), windows.epoch_tokens
    assert sorted(tokens[:size]) == sorted(tokens[size : 2 * size])
    assert not np.array_equal(tokens[:size], tokens[size : 2 * size])


def test_seeds_have_orders_of_their_own(corpus: Corpus) -> None:
    one, two = (stream(packed(Part(corpus), num_windows=20, seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_how_files_are_cut_changes_nothing(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    records = documents(40, seed=5, prefix="data")
    (tmp_path / "cut").mkdir()
    write_jsonl(tmp_path / "cut" / "a.jsonl", records[25:])
    write_jsonl(tmp_path / "cut" / "b.jsonl", records[:25])
    cut = corpus_of(checkpoint, tmp_path / "cut", tmp_path / "corpus")
    one, two = (stream(packed(Part(each), num_windows=60, separator=SEPARATOR)) for each in (corpus, cut))
    assert np.array_equal(one, two)


def test_a_document_that_brings_its_separator_gets_no_second(corpus: Corpus) -> None:
    first = int(corpus.tokens(0)[0])
    windows = packed(Part(corpus), num_windows=1, separator=first)
    without = sum(first not in corpus.tokens(i)[[0, -1]] for i in range(corpus.num_samples))
    assert without < corpus.num_samples
    assert windows.epoch_tokens == corpus.num_tokens.sum() + without


def test_labels_are_the_tokens_but_for_the_first(corpus: Corpus) -> None:
    window = packed(Part(corpus), num_windows=3)[2]
    assert window["input_ids"].shape == (WINDOW,)
    assert window["labels"][0] == -100
    assert window["labels"][1:].equal(window["input_ids"][1:])


class TestMixing:
    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_the_share_is_of_tokens(self, corpus: Corpus, other: Corpus, share: float) -> None:
        windows = packed(Part(corpus), Part(other, share), num_windows=whole_epochs(corpus, 8))
        own = np.isin(windows._owner, 0)
        tokens = windows._lengths[1][windows._document[~own]].sum() / windows._ends[-1]
        # Documents are whole: an epoch can exceed its share by one of them at most.
        longest = windows._lengths[1].max() / windows.epoch_tokens
        assert share <= tokens + 1e-12 < share + longest

    def test_no_document_comes_again_before_all_have_come(self, corpus: Corpus, other: Corpus) -> None:
        windows = packed(Part(corpus), Part(other, 0.3), num_windows=whole_epochs(corpus, 6))
        seen = Counter(windows._document[windows._owner == 1].tolist())
        assert max(seen.values()) - min(seen[i] for i in range(other.num_samples)) <= 1

    def test_a_share_of_everything_is_refused(self, corpus: Corpus, other: Corpus) -> None:
        with pytest.raises(ValueError, match="leave something"):
            packed(Part(corpus), Part(other, 1.0), num_windows=1)
