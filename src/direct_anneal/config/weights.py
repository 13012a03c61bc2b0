"""The options of `weights`."""

from __future__ import annotations

from typing import Literal

from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import overwrite_option
from direct_anneal.config.types import OptionalPath, PathText
from direct_anneal.errors import InputError

MixFormat = Literal["olmo-core", "megatron", "nanotron", "levanter", "mosaicml"]


@configuration
class WeightsConfig:
    """Options of `weights`.

    Raises:
        InputError: a value is out of range.
    """

    run: PathText = option(
        kw_only=False,
        reads="path",
        metavar="DIR",
        help="the directory of a finished select, solve, or score with a size",
    )
    to: MixFormat = option(help="the trainer whose configuration is printed")
    buckets: int = option(
        default=1,
        metavar="B",
        help="number of parts of equal size into which all sources together are divided by score",
    )
    paths: str = option(
        default="DATA/{source}/{bucket}",
        metavar="TEMPLATE",
        help="path of each source's and bucket's data, as the configuration names it",
    )
    out: OptionalPath = option(
        default=None, unset="not written", affects="nothing", metavar="FILE", help="Parquet file for the table"
    )
    overwrite: bool = overwrite_option("replace an earlier table")

    def __post_init__(self) -> None:
        require(1 <= self.buckets <= 1000, "buckets", "in 1..1000", self.buckets)
        if (self.buckets > 1 and "{bucket}" not in self.paths) or "{source}" not in self.paths:
            raise InputError(field="paths", must="name {source}, and {bucket} where there are several", got=self.paths)
