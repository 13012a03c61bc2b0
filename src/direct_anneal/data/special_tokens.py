"""Special tokens that stand in a text: "<|endoftext|>" on a web page must not end a document by itself.

A tokenizer takes such a text for the token unless it is told not to.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from direct_anneal.config.names import SpecialTokens
from direct_anneal.errors import InputError, option


class TokenizerLike(Protocol):
    """The protocol of a tokenizer; those of Hugging Face fit."""

    def __call__(self, texts: list[str], /) -> Mapping[str, Any]:
        """Return {"input_ids": a list of token ids for each text}."""
        ...


class TextTokenizer:
    """A tokenizer that reads special tokens within texts as it is told; other texts give the same tokens either way.

    Args:
        tokenizer: kept from warning of texts longer than the model: these are split into windows later.
        special_tokens: "text" reads them letter by letter as any text, "keep" takes them for the tokens; "drop" leaves
            the documents out, which is for the caller to do.
    """

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens) -> None:
        self._mode = special_tokens
        self._specials = _specials(tokenizer)
        takes_verbose = "verbose" in inspect.signature(tokenizer).parameters
        options: dict[str, Any] = {"verbose": False} if takes_verbose else {}
        if special_tokens == "text" and hasattr(tokenizer, "split_special_tokens"):
            options["split_special_tokens"] = True
        self._encode = functools.partial(tokenizer, **options)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._specials, key=len, reverse=True))))
        self._read_as_text = functools.cache(self._check_read_as_text)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        ids: list[list[int]] = self._encode(texts)["input_ids"]
        return ids

    def within(self, text: str) -> str:
        """Name the special tokens that stand in a text, with how often: "2 <s>, 1 </s>"; empty if none.

        Raises:
            InputError: they are to be read as text, and this tokenizer cannot.
        """
        if not self._specials or self._pattern.search(text) is None:
            return ""
        counts = Counter(self._pattern.findall(text))
        if self._mode == "text":
            for special in counts:
                self._read_as_text(special)
        return ", ".join(f"{count} {special}" for special, count in counts.most_common())

    def _check_read_as_text(self, special: str) -> None:
        token = self._specials[special]
        plain, probe = self([" a b", f" a {special} b"])
        if probe.count(token) > plain.count(token):
            raise InputError(
                field="special_tokens",
                must="be another than text for this tokenizer, which cannot read them so",
                got=f"but documents hold {special!r} in their text",
                do=f"pass {option('special_tokens')} drop to leave these documents out, or keep to have the tokens",
            )


def text_tokenizer(load: Callable[[], Any], special_tokens: SpecialTokens) -> TextTokenizer:
    """Load a tokenizer for texts."""
    return TextTokenizer(load(), special_tokens)


def _specials(tokenizer: Any) -> dict[str, int]:
    """Return special tokens by how they are written."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {token.content: number for number, token in added.items() if token.special and token.content}
