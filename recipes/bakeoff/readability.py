"""The harder part of a domain, by a measure that no selector sees."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
_VOWELS = re.compile(r"[aeiouy]+", re.IGNORECASE)


def grade(text: str) -> float:
    """Flesch–Kincaid grade: 0.39 words a sentence + 11.8 syllables a word − 15.59; a syllable is a run of vowels.

    >>> grade("The cat sat. The dog ran.") < grade("Constitutional jurisprudence presupposes institutions.")
    True
    """
    words = [word for word in text.split() if any(letter.isalpha() for letter in word)]
    if not words:
        return 0.0
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    syllables = sum(max(1, len(_VOWELS.findall(word))) for word in words)
    return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59
