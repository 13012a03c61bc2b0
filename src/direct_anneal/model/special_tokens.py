"""Tokens that stand for no text: one rule for reading, packing, exporting and evaluating.

1. A document is preceded and followed by what its tokenizer puts around a text.
2. Documents are separated by the tokenizer's end token. Only where it names none do generation_config.json and
   config.json count, in that order: there `eos_token_id` is often a class's default that no training has seen.
3. The context of a document's first token is what the tokenizer puts before a text; else its BOS; else its EOS; else
   the separator. It is seen and not counted, and what the tokenizer appends is not counted either.
4. Where the two sources disagree, that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PROBE = "a"  # a text that every tokenizer has tokens for


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a checkpoint.

    Attributes:
        before, after: what the tokenizer puts around a text.
        separator: ends a document where documents follow one another; None where nothing names one.
        context: what the first token of a document is predicted from, where the document does not bring it.
        notes: disagreements of tokenizer and configuration, for people.
        doubt: why the separator may be wrong, where that is not known; for whoever uses it.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    separator: int | None = None
    context: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    doubt: str | None = None

    @classmethod
    def of(
        cls,
        vocab_size: int,
        tokenizer: Any | None,
        stated: Sequence[tuple[str, Mapping[str, Any]]],
        default: int | None = None,
    ) -> SpecialTokens:
        """Apply the rule.

        Args:
            vocab_size: ids must be below it.
            tokenizer: the checkpoint's, if it has one.
            stated: configurations by name, the first that names a token counts.
            default: the end token of the model's class.
        """
        notes: list[str] = []
        before, after = _around(tokenizer) if tokenizer is not None else ((), ())
        own = _valid(getattr(tokenizer, "eos_token_id", None), vocab_size)
        bos = _valid(getattr(tokenizer, "bos_token_id", None), vocab_size)
        others = [(name, ids) for name, config in stated if (ids := _listed(config.get("eos_token_id"), vocab_size))]
        separator = own if own is not None else next((ids[0] for _, ids in others), _valid(default, vocab_size))
        doubt = None
        if tokenizer is not None:
            notes += _disagreement(tokenizer, own, others)
            if own is None and separator is not None and separator not in tokenizer.all_special_ids:
                doubt = (
                    f"end token: the tokenizer names none, and {others[0][0] if others else 'the class of the model'} "
                    f"says {_told(tokenizer, separator)}, which texts may hold"
                )
            if (size := len(tokenizer)) > vocab_size:
                notes.append(
                    f"the tokenizer has {size:,} tokens and the model {vocab_size:,}: documents with later ones are "
                    "left out"
                )
        context = before or tuple(token for token in (bos, own, separator) if token is not None)[:1]
        return cls(before, after, separator, context, tuple(notes), doubt)

    def of_the_separator(self) -> list[str]:
        """Return notes for whoever separates documents by it."""
        return [*self.notes, *([] if self.doubt is None else [self.doubt])]

    def split(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, int]:
        """Return tokens of a document after their context, and which of them are the text's.

        Args:
            tokens: as the corpus has them, (T,).

        Returns:
            context and tokens, (C + T',); C; and where the text's end, which what the tokenizer appends follows.
        """
        start = next(
            (
                len(brought)
                for brought in (self.before, self.context)
                if brought and tuple(tokens[: len(brought)].tolist()) == brought
            ),
            0,
        )
        context = tokens[:start] if start else np.array(self.context, dtype=np.int64)
        text = tokens[start:]
        appended = bool(self.after) and tuple(text[-len(self.after) :].tolist()) == self.after
        end = len(text) - (len(self.after) if appended else 0)
        return np.concatenate([context, text]), len(context), len(context) + end


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that the tokenizer puts before and after a text."""
    whole = list(tokenizer([_PROBE])["input_ids"][0])
    text = list(tokenizer([_PROBE], add_special_tokens=False)["input_ids"][0])
    for start in range(len(whole) - len(text) + 1):
        if text and whole[start : start + len(text)] == text:
            return tuple(whole[:start]), tuple(whole[start + len(text) :])
    return (), ()


def _disagreement(tokenizer: Any, own: int | None, others: list[tuple[str, list[int]]]) -> list[str]:
    if own is None:
        return []
    return [
        f"end token: the tokenizer's is {_told(tokenizer, own)}, {name} says {_told(tokenizer, ids[0])}; the "
        "tokenizer's counts, unless eos_id is given"
        for name, ids in others
        if own not in ids
    ][:1]


def _told(tokenizer: Any, token: int) -> str:
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})"


def _listed(value: Any, vocab_size: int) -> list[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return [token for one in values if (token := _valid(one, vocab_size)) is not None]


def _valid(token: Any, vocab_size: int) -> int | None:
    is_id = isinstance(token, int) and not isinstance(token, bool)
    return token if is_id and 0 <= token < vocab_size else None
