"""Bits per byte: nats of a document under the model, over ln 2 and its UTF-8 bytes. No tokenizer can flatter it.

N documents, T tokens of a window, B windows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from direct_anneal.config.evaluate import BATCH_TOKENS
from direct_anneal.data import Corpus, Names, texts


@dataclass(frozen=True)
class DomainScore:
    """One domain.

    Attributes:
        bits_per_byte: total nats / ln 2 / total bytes, so that a document weighs by its bytes.
        standard_error: of bits_per_byte over documents, as of a ratio (delta method); None for one document.
        nats, num_bytes, num_tokens, num_documents: what it was made from; tokens are those predicted.
    """

    bits_per_byte: float
    standard_error: float | None
    nats: float
    num_bytes: int
    num_tokens: int
    num_documents: int


def bits_per_byte(
    model: nn.Module,
    corpus: Corpus,
    *,
    window: int,
    prefix: int | None,
    text_field: Names = "text",
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, DomainScore]:
    """The bits per byte of each domain of a corpus, over whole documents.

    A document longer than the window is split; each window starts with the last token of the one before it, so that
    every token is predicted exactly once, a window's first ones from little context. What precedes a document is
    `prefix`, unless its tokens bring that already; without one the first token is not predicted (its bytes count
    nevertheless, so that the number is a little too low). Of a document with a prompt the prompt is seen and not
    predicted, and neither its nats nor its bytes count.

    Args:
        corpus: N documents with text.
        window: T ≥ 2, tokens that the model sees at once.
        prefix: the token that separates documents in training; None where there is none.
        batch_tokens: padded tokens of a batch; changes the result by float rounding alone.
        advance: told the windows done.

    Raises:
        InputError: a document has no text.

    Cost: one forward pass. The model is put into evaluation mode and given back as it was.
    """
    nats, num_tokens = _nats(model, corpus, window, prefix, batch_tokens, advance)
    num_bytes = np.array([len(text.encode("utf-8")) for text in texts(corpus, text_field)], dtype=np.int64)
    names = np.array(corpus.index["domain"].to_pylist(), dtype=object)
    return {
        name: _score(nats[names == name], num_bytes[names == name], num_tokens[names == name])
        for name in sorted(set(names.tolist()))
    }


def count_windows(corpus: Corpus, window: int, prefix: int | None) -> int:
    """How many windows `bits_per_byte` will score."""
    return sum(1 for _ in _pieces(corpus, window, prefix))


def macro_mean(scores: dict[str, DomainScore], domains: Sequence[str] | None = None) -> float:
    """The mean of the domains' bits per byte, each domain counting the same.

    Raises:
        KeyError: a domain has no score.
    """
    names = list(scores) if domains is None else domains
    return math.fsum(scores[name].bits_per_byte for name in names) / len(names)


def _score(nats: NDArray[np.float64], num_bytes: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> DomainScore:
    count, total = len(nats), int(num_bytes.sum())
    ratio = float(nats.sum()) / math.log(2) / total
    residual = nats / math.log(2) - ratio * num_bytes
    error = math.sqrt(count / (count - 1) * float(np.square(residual).sum())) / total if count > 1 else None
    return DomainScore(
        bits_per_byte=ratio,
        standard_error=error,
        nats=float(nats.sum()),
        num_bytes=total,
        num_tokens=int(num_tokens.sum()),
        num_documents=count,
    )


def _nats(
    model: nn.Module,
    corpus: Corpus,
    window: int,
    prefix: int | None,
    batch_tokens: int,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Negative log-likelihood of each document in nats, and its predicted tokens, both (N,)."""
    nats, num_tokens = np.zeros(corpus.num_samples), np.zeros(corpus.num_samples, dtype=np.int64)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for owners, ids, lengths, given in _batches(corpus, window, prefix, batch_tokens):
                mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]  # (B, T)
                logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
                targets = ids[:, 1:].to(device)
                losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T-1)
                predicted = mask[:, 1:] & (torch.arange(1, ids.shape[1])[None, :] >= given[:, None])
                np.add.at(nats, owners, torch.where(predicted, losses.cpu().double(), 0.0).sum(1).numpy())
                np.add.at(num_tokens, owners, predicted.sum(1).numpy())
                advance(len(owners))
    finally:
        model.train(was_training)
    return nats, num_tokens


def _batches(
    corpus: Corpus, window: int, prefix: int | None, batch_tokens: int
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield owners, ids (B, T), lengths (B,) and leading tokens that are given: windows of like length together."""
    pieces = sorted(_pieces(corpus, window, prefix), key=lambda piece: piece[1] - piece[2])  # longest first
    batch: list[tuple[int, int, int]] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * (batch[0][2] - batch[0][1]) > batch_tokens:
            yield _padded(corpus, batch, prefix)
            batch = []
        batch.append(piece)
    yield _padded(corpus, batch, prefix)


def _pieces(corpus: Corpus, window: int, prefix: int | None) -> Iterator[tuple[int, int, int]]:
    """Each window: document, start and stop in its tokens with the prefix."""
    for i in range(corpus.num_samples):
        total = len(_prefixed(corpus, i, prefix))
        yield from ((i, start, min(start + window, total)) for start in range(0, total - 1, window - 1))


def _padded(
    corpus: Corpus, batch: list[tuple[int, int, int]], prefix: int | None
) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([stop - start for _, start, stop in batch])
    ids = torch.zeros(len(batch), int(lengths[0]), dtype=torch.int64)
    for row, (owner, start, stop) in enumerate(batch):
        ids[row, : stop - start] = torch.from_numpy(_prefixed(corpus, owner, prefix)[start:stop])
    given = torch.tensor([_given(corpus, owner, prefix) - start for owner, start, _ in batch])
    return np.array([owner for owner, _, _ in batch], dtype=np.int64), ids, lengths, given


def _given(corpus: Corpus, i: int, prefix: int | None) -> int:
    """Leading tokens of a document with its prefix that are not predicted."""
    added = len(_prefixed(corpus, i, prefix)) - int(corpus.num_tokens[i])
    return added + int(corpus.num_prompt[i])


def _prefixed(corpus: Corpus, i: int, prefix: int | None) -> NDArray[np.int64]:
    tokens = corpus.tokens(i)
    return tokens if prefix is None or tokens[0] == prefix else np.concatenate([[prefix], tokens])
