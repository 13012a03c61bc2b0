"""The scorer's format, word by word in plain Python: what docs/format.md says."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from direct_anneal.distill.scorer import LENGTHS, Scorer

MASK = 2**64 - 1
STEP, PAIR, MIX = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93
WORD = re.compile("[0-9A-Za-z_\u0080-\u1fff]+|[!-/:-@[-^`{-~\u2000-\u2fff]+|[\u3000-\U0010ffff]")


def words_of(text: str) -> list[bytes]:
    """The words of a text, A-Z as a-z."""
    return [word.encode().lower() for word in WORD.findall(text)]


def mixed(value: int) -> int:
    value ^= value >> 32
    value = value * MIX & MASK
    value ^= value >> 29
    return value * STEP & MASK


def hash_of(word: bytes) -> int:
    parts = [int.from_bytes(word[start : start + 8], "little") for start in range(0, len(word), 8)]
    value = mixed(len(word) * STEP & MASK ^ parts[0])
    for part in parts[1:]:
        value = mixed(value * PAIR & MASK ^ part)
    return value


def token_hash(token: int) -> int:
    return (token + 1) * STEP & MASK


def places_of(hashes: list[int], bits: int) -> list[int]:
    pairs = [(one * PAIR + other) & MASK for one, other in pairwise(hashes)]
    return [mixed(value) >> (64 - bits) for value in (*hashes, *pairs)]


def score_of(hashes: list[int], scorer: Scorer) -> float:
    """Exact but for the last roundings."""
    places = places_of(hashes, scorer.bits)
    total = sum(int(scorer.weights[place]) for place in places)
    length = sum(1 for bound in LENGTHS.tolist() if bound <= len(hashes))
    return float(Fraction(total, len(places)) * Fraction(scorer.scale)) + float(scorer.lengths[length])
