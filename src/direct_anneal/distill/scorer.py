"""A linear model on hashed n-grams: scores text, or tokens, without a language model.

scorer = read_scorer("scorer")
scorer.scores(["a first text", "a second one"])      # (2,) float32, NaN for a text without a word

n documents, P = 2^bits places.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.distil import MAX_BITS, MIN_BITS
from direct_anneal.config.distil import CountedUnit as Unit
from direct_anneal.distill.hashing import places, tokens, words
from direct_anneal.errors import InputError
from direct_anneal.io.atomic import replacing
from direct_anneal.io.digests import sha256
from direct_anneal.io.records import RecordError, read_content, read_sealed, write_record

FORMAT = 1
CARD, WEIGHTS = "scorer.json", "scorer.safetensors"
# A document of U words belongs to the first length above U: half octaves.
LENGTHS = np.array([math.isqrt(2**power) for power in range(2, 64)], dtype=np.int64)

_MOST_BYTES = 4 * 2**MAX_BITS + 2**16  # of weights: the largest table, and what stands around it
_BLOCK_BYTES = 2**18  # of text at once: its arrays stay in the processor's cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """The scorer distilled from a run.

    A document of U words has G = 2 U − 1 n-grams: its words, and the pairs of neighbours. Its score is
    scale / G · Σ_g weights[place(g)] + lengths[l(U)]. Weights are whole numbers, so that their sum does not depend on
    order or machine; what follows are single operations of IEEE 754.

    Attributes:
        unit: what is counted, "words" of texts or "tokens" of documents that are tokenised.
        weights: (P,) int32.
        scale: of the weights, in units of the score.
        lengths: (L + 1,) float64, what a document has by its length alone; the constant is in it.
        card: what is known of it, as plain JSON values.
    """

    unit: Unit
    weights: NDArray[np.int32]
    scale: float
    lengths: NDArray[np.float64]
    card: Mapping[str, Any]

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """With a 0 at the end, for pairs that are none."""
        return np.append(self.weights, np.int32(0))

    @cached_property
    def fingerprint(self) -> str:
        """Equal for scorers that give equal scores."""
        digest = hashlib.sha256(f"{FORMAT} {self.unit} {self.scale!r}".encode())
        digest.update(self.weights.astype("<i4").tobytes() + self.lengths.astype("<f8").tobytes())
        return digest.hexdigest()

    @property
    def bits(self) -> int:
        """P = 2^bits."""
        return len(self.weights).bit_length() - 1

    def scores(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Score texts, (n,): of a scorer of words. NaN where there is no word. Memory: a block of texts.

        Raises:
            InputError: this scorer is one of tokens.
        """
        self.check_unit("words", "texts")
        found, held, size = [np.empty(0, dtype=np.float32)], list[bytes](), 0
        for text in texts:
            held.append(text.encode())
            size += len(held[-1])
            if size >= _BLOCK_BYTES:
                found.append(self.score_texts(*joined(held)))
                held, size = [], 0
        if held:
            found.append(self.score_texts(*joined(held)))
        return np.concatenate(found)

    def score_texts(self, text: bytes, bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score documents that lie end to end as UTF-8: document i is text[bounds[i]:bounds[i + 1]], (n,)."""
        return self._scored(*words(text, bounds))

    def score_tokens(self, ids: NDArray[np.integer], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score tokenised documents that lie end to end, (n,)."""
        return self._scored(tokens(ids), bounds)

    def check_unit(self, unit: Unit, what: str) -> None:
        """See that it counts what documents have.

        Raises:
            InputError: it does not.
        """
        if self.unit != unit:
            raise InputError(
                subject="the scorer",
                must=f"count {unit} for {what}",
                got=f"but counts {self.unit}",
                do="distil a run whose pool is of that kind",
            )

    def _scored(self, hashes: NDArray[np.uint64], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        single, pairs = places(hashes, bounds, self.bits)
        of_words = self._table[single]
        sums = np.zeros(len(hashes) + 1, dtype=np.int64)
        np.cumsum(of_words, out=sums[1:])
        totals = np.diff(sums[bounds])
        np.cumsum(self._table[pairs], out=sums[1:])
        totals += np.diff(sums[bounds])
        counts = np.diff(bounds)
        found = np.full(len(counts), np.nan, dtype=np.float32)
        is_some = counts > 0
        mean = totals[is_some] / (2 * counts[is_some] - 1)
        found[is_some] = mean * self.scale + self.lengths[length_of(counts[is_some])]
        return found


def length_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bucket documents by their number of words, (n,) in 0..L."""
    return np.searchsorted(LENGTHS, counts, side="right")


def joined(texts: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """Join texts end to end; return where each begins, too: (n + 1,)."""
    bounds = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=bounds[1:])
    return b"".join(texts), bounds


def write_scorer(scorer: Scorer, out: Path) -> None:
    """Write a scorer into a directory, made if need be: the weights first, and the card, which vouches for them, last.

    Raises:
        OSError: the disk is full, or fails.
    """
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    content = save({"weights": scorer.weights, "lengths": scorer.lengths}, metadata={"format": "direct-anneal scorer"})
    with replacing(out / WEIGHTS) as temporary:
        temporary.write_bytes(content)
    card = {
        "format": FORMAT,
        "unit": scorer.unit,
        "bits": scorer.bits,
        "scale": scorer.scale,
        "sha256": sha256(content),
        **scorer.card,
    }
    write_record(out / CARD, card)


def read_scorer(directory: str | Path) -> Scorer:
    """Read a scorer; numpy and safetensors are enough for it.

    Raises:
        InputError: there is none, it is damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    directory = Path(directory)
    name = CARD
    try:
        card = read_sealed(directory / CARD)
        name = WEIGHTS
        content = read_content(directory / WEIGHTS, _MOST_BYTES)
    except RecordError as error:
        raise _unfit(directory, f"{name} {error}") from error
    except OSError as error:
        raise _unfit(directory, f"{name} cannot be read ({error.strerror})") from error
    if card.get("format") != FORMAT:
        raise _unfit(directory, f"{CARD} is not of format {FORMAT}")
    if sha256(content) != card.get("sha256"):
        raise _unfit(directory, f"{WEIGHTS} is not the file that {CARD} was written with")
    try:
        arrays = load(content)
        weights, lengths = arrays["weights"], arrays["lengths"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise _unfit(directory, " ".join(str(error).split())) from error
    unit: Any = card.get("unit")
    bits: Any = card.get("bits")
    scale: Any = card.get("scale")
    fits = (
        isinstance(bits, int)
        and MIN_BITS <= bits <= MAX_BITS
        and (weights.dtype, weights.shape) == (np.int32, (2**bits,))
        and (lengths.dtype, lengths.shape) == (np.float64, (len(LENGTHS) + 1,))
        and unit in ("words", "tokens")
        and isinstance(scale, float)
        and math.isfinite(scale)
        and bool(np.isfinite(lengths).all())
        and _is_rate(card.get("tokens_per_size"))
        and type(card.get("vocab_size")) is int
        and card["vocab_size"] > 0
    )
    if not fits:
        raise _unfit(directory, "its arrays are not as its card says")
    return Scorer(unit=unit, weights=weights, scale=scale, lengths=lengths, card=card)


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _unfit(directory: Path, reason: str) -> InputError:
    return InputError(
        subject=f"{directory}", must="be a scorer that distil wrote", got=f"but {reason}", do="distil the run again"
    )
