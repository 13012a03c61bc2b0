"""Windows, padding and labels against loops over places."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from direct_anneal.model.batching import (
    IGNORED_LABEL,
    Window,
    batches,
    labelled,
    next_labels,
    num_predicted,
    padded,
    padded_right,
    side_of,
    windows_of,
)

DOCUMENTS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


def documents_of(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(length) + 100 * document for document, length in enumerate(lengths)]


@settings(max_examples=60, deadline=None)
@given(lengths=DOCUMENTS, max_length=st.integers(2, 12), num_prompt=st.integers(0, 15), size=st.integers(1, 60))
def test_each_token_is_predicted_once_unless_it_begins_a_window_or_is_a_prompts(
    lengths: list[int], max_length: int, num_prompt: int, size: int
) -> None:
    documents = documents_of(lengths)
    windows = windows_of(documents, max_length=max_length, num_prompt=[num_prompt] * len(lengths))
    found = []
    for batch in batches(windows, size):
        rows = padded(batch)
        assert len(batch) == 1 or rows.ids.numel() <= size
        for row, window in enumerate(batch):
            length = len(window.tokens)
            assert rows.mask[row].tolist() == [1] * length + [0] * (rows.ids.shape[1] - length)
            assert (rows.ids[row, length:] == rows.ids[row, 0]).all()
            found += rows.labels[row][rows.labels[row] != IGNORED_LABEL].tolist()
            assert rows.documents[row] == window.document
    expected = [
        int(tokens[place])
        for tokens in documents
        for place in range(len(tokens))
        if place >= num_prompt and place % max_length
    ]
    assert sorted(found) == sorted(expected)
    assert sum(num_predicted(labelled(tokens, num_prompt), max_length) for tokens in documents) == len(expected)


@settings(max_examples=60, deadline=None)
@given(lengths=DOCUMENTS, switches=st.sets(st.integers(1, 12), max_size=3), unseen=st.integers(0, 1))
def test_no_batch_reaches_over_a_switch(lengths: list[int], switches: set[int], unseen: int) -> None:
    windows = windows_of(documents_of(lengths), max_length=12)
    found = list(batches(windows, 1000, sorted(switches), unseen=unseen))
    assert sorted(id(window) for batch in found for window in batch) == sorted(map(id, windows))
    for batch in found:
        assert len({side_of(len(window.tokens) - unseen, sorted(switches)) for window in batch}) == 1


def test_labels_may_be_others_than_the_tokens() -> None:
    (window,) = windows_of([np.arange(4)], max_length=8, labels=[np.array([7, IGNORED_LABEL, 9, 8])])
    assert padded([window]).labels.tolist() == [[IGNORED_LABEL, IGNORED_LABEL, 9, 8]]
    assert not Window(0, np.arange(2), labels=np.array([5, IGNORED_LABEL])).predicts


@pytest.mark.parametrize("left", [False, True])
def test_padding_moves_to_the_right(left: bool) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]] if left else [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    ids = torch.arange(10).reshape(2, 5)
    moved, labels, lengths = padded_right(ids, mask, ids)
    assert lengths.tolist() == [3, 4]
    first = [2, 6] if left else [0, 5]
    assert moved.tolist() == [[first[0], first[0] + 1, first[0] + 2, first[0]], [first[1] + i for i in range(4)]]
    assert labels[0, 3] == IGNORED_LABEL
    assert next_labels(labels)[0].tolist() == [first[0] + 1, first[0] + 2, IGNORED_LABEL, IGNORED_LABEL]


def test_a_least_share_bounds_padding_in_a_shard_of_few_documents() -> None:
    rng = np.random.default_rng(0)
    for count in (64, 128, 256):
        lengths = np.exp(rng.uniform(np.log(20), np.log(512), count)).astype(int)
        windows = windows_of([np.arange(length) for length in lengths], max_length=256)
        made = list(batches(windows, 2048, least_share=0.85))
        assert sorted(map(id, itertools.chain(*made))) == sorted(map(id, windows))
        laid = sum(len(batch) * len(batch[0].tokens) for batch in made)
        assert sum(len(window.tokens) for window in windows) > 0.95 * laid
        assert all(len(window.tokens) >= 0.85 * len(batch[0].tokens) for batch in made for window in batch)
