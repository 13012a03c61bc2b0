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
from direct_anneal.errors import InputError
from direct_anneal.model.batching import IGNORED_LABEL, Window, batches, padded
from direct_anneal.model.borrowing import in_evaluation_mode
from direct_anneal.model.lengths import length_switches
from direct_anneal.model.special_tokens import SpecialTokens
from direct_anneal.model.token_losses import token_nats

_BLOCK_TOKENS = 1 << 22  # held at once


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
    special: SpecialTokens,
    text_field: Names = "text",
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, DomainScore]:
    """Compute the bits per byte of each domain of a corpus, over whole documents.

    Every token of a text is predicted exactly once. What precedes it is the tokenizer's own convention
    (`SpecialTokens`): seen, and not counted; nor is what the tokenizer appends. A document longer than the window is
    split as lm-eval does in its rolling log-likelihood: the model sees T tokens at once, and the last window is filled
    up with context. Where no token is known to precede a text, its first is not predicted (its bytes count
    nevertheless, so that the number is a little too low). Of a document with a prompt the prompt is seen and not
    predicted, and neither its nats nor its bytes count.

    Args:
        corpus: N documents with text.
        window: T ≥ 2, tokens that the model sees at once.
        special: the checkpoint's special tokens.
        batch_tokens: padded tokens of a batch; changes the result by float rounding alone.
        advance: told the windows done.

    Raises:
        InputError: a document has no text.

    Cost: one forward pass. The model is put into evaluation mode and given back as it was.
    """
    nats, num_tokens = _nats(model, corpus, window, special, batch_tokens, advance)
    num_bytes = np.array([len(text.encode("utf-8")) for text in texts(corpus, text_field)], dtype=np.int64)
    names = np.array(corpus.index["domain"].to_pylist(), dtype=object)
    return {
        name: _score(nats[names == name], num_bytes[names == name], num_tokens[names == name])
        for name in sorted(set(names.tolist()))
    }


def count_windows(corpus: Corpus, window: int, special: SpecialTokens) -> int:
    """Count the windows that `bits_per_byte` will score."""
    return sum(len(_windows(corpus, i, window, special)) for i in range(corpus.num_samples))


def macro_mean(scores: dict[str, DomainScore], domains: Sequence[str] | None = None) -> float:
    """Return the mean of the domains' bits per byte, each domain counting the same.

    Raises:
        KeyError: a domain has no score.
    """
    names = list(scores) if domains is None else domains
    return math.fsum(scores[name].bits_per_byte for name in names) / len(names)


def _score(nats: NDArray[np.float64], num_bytes: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> DomainScore:
    count, total = len(nats), int(num_bytes.sum())
    ratio = float(nats.sum()) / math.log(2) / total
    if not math.isfinite(ratio):
        raise InputError(
            subject="the loss on held-out text",
            must="be finite",
            got=f"but was {ratio}",
            do="see whether the checkpoint is damaged",
        )
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
    special: SpecialTokens,
    batch_tokens: int,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the negative log-likelihood of each document in nats, and its predicted tokens, both (N,)."""
    nats, num_tokens = np.zeros(corpus.num_samples), np.zeros(corpus.num_samples, dtype=np.int64)
    device = next(model.parameters()).device
    with in_evaluation_mode(model), torch.inference_mode():
        for windows in _blocks(corpus, window, special):
            for batch in batches(windows, batch_tokens, length_switches(model), unseen=1):
                rows = padded(batch)
                # The last token is predicted and not seen: with it a full window would exceed the context.
                ids, targets = rows.ids[:, :-1], rows.labels[:, 1:]
                losses = token_nats(model, ids.to(device), targets.to(device))  # (B, T)
                np.add.at(nats, rows.documents, losses.sum(1).cpu().numpy())
                np.add.at(num_tokens, rows.documents, (targets != IGNORED_LABEL).sum(1).numpy())
                advance(len(batch))
    return nats, num_tokens


def _blocks(corpus: Corpus, window: int, special: SpecialTokens) -> Iterator[list[Window]]:
    """Return windows of documents, some millions of tokens at a time."""
    block: list[Window] = []
    size = 0
    for document in range(corpus.num_samples):
        block += _windows(corpus, document, window, special)
        size += int(corpus.num_tokens[document])
        if size >= _BLOCK_TOKENS:
            yield block
            block, size = [], 0
    yield block


def _windows(corpus: Corpus, document: int, window: int, special: SpecialTokens) -> list[Window]:
    """Return windows of a document: at most T tokens that are seen, and the one after them.

    The first has as many as fit, each later one predicts up to T more, and sees the T before its last.
    """
    tokens = corpus.tokens(document)
    whole, num_context, end = special.split(tokens)
    given = len(whole) - len(tokens) + int(corpus.num_prompt[document])
    whole, first = whole[:end], max(1, num_context, given)
    reached = min(len(whole), window + 1)
    found = [Window(document, whole[:reached], first)]
    while reached < len(whole):
        stop = min(len(whole), reached + window)
        start = stop - window - 1
        found.append(Window(document, whole[start:stop], reached - start))
        reached = stop
    return [one for one in found if one.predicts]
