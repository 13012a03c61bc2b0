"""The options of `distil`."""

from __future__ import annotations

from typing import Literal

from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import overwrite_option, trust_option
from direct_anneal.config.types import PathText

CountedUnit = Literal["words", "tokens"]

MIN_BITS, MAX_BITS = 10, 26  # of the table's size: places are made of 32-bit halves of a hash


@configuration
class DistilConfig:
    """Options of `distil`.

    Raises:
        InputError: a value is out of range.
    """

    run: PathText = option(
        kw_only=False, reads="run", metavar="RUN_DIR", help="the directory of a finished select or solve"
    )
    out: PathText = option(affects="nothing", metavar="SCORER", help="new directory for the scorer")
    target: str = option(
        default="rank",
        metavar="COLUMN",
        help="column of selection.parquet in which higher is better, such as path or score; or rank, the run's own "
        "order; or selected",
    )
    unit: CountedUnit = option(
        default="words", help="count words of texts, or tokens (for pools that are tokenised as the run's)"
    )
    bits: int = option(default=20, metavar="B", help="the table has 2^B places")
    trust_remote_code: bool = trust_option()
    overwrite: bool = overwrite_option("replace an earlier scorer in the output directory")

    def __post_init__(self) -> None:
        require(MIN_BITS <= self.bits <= MAX_BITS, "bits", f"in {MIN_BITS}..{MAX_BITS}", self.bits)
