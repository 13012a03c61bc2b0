"""What a user asks of `distil`, `score` and `merge`."""

from __future__ import annotations

from dataclasses import dataclass

from direct_anneal.config.options import require, settle
from direct_anneal.distill.hashing import MAX_BITS, MIN_BITS
from direct_anneal.distill.scorer import Unit


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """One scorer.

    Attributes:
        run: the directory of a finished `select` or `solve`.
        out: the scorer's directory.
        target: a column of the run's selection.parquet, of which more is better: "path", "score", ...; or "rank", the
            run's own order, best first; or "selected", whether it was chosen.
        unit: what is counted: "words" of texts, or "tokens", for pools that are tokenised as the run's.
        bits: the table has 2^bits places.
        trust_remote_code: run Python code that the checkpoint brings.
        overwrite: replace an earlier scorer in `out`.

    Raises:
        InputError: a value is out of range.
    """

    run: str
    out: str
    target: str = "rank"
    unit: Unit = "words"
    bits: int = 20
    trust_remote_code: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        settle(self)
        require(MIN_BITS <= self.bits <= MAX_BITS, "bits", f"in {MIN_BITS}..{MAX_BITS}", self.bits)
