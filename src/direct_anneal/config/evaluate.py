"""The options of `evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike
from typing import Any

from direct_anneal.config.names import DtypeName
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require, require_device
from direct_anneal.config.shared import (
    DATA,
    MACHINE,
    RecordFields,
    device_option,
    max_length_option,
    overwrite_option,
    revision_option,
    subfolder_option,
    trust_option,
)
from direct_anneal.config.types import FilesByName, PathText, Texts
from direct_anneal.config.values import pairs
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

BATCH_TOKENS = 8192


def files_by_name(name: str, given: object) -> dict[str, str]:
    """Parse benchmark → file, from a mapping or from texts "benchmark=file"."""
    found = {}
    for benchmark, path in pairs(given):
        fits = isinstance(benchmark, str) and isinstance(path, str | PathLike) and bool(benchmark) and bool(str(path))
        require(fits, name, "NAME=FILE", given)
        found[benchmark] = str(path)
    return found


@configuration
class EvaluateConfig(RecordFields):
    """Options of `evaluate`.

    Raises:
        InputError: a value is out of range.
    """

    model: PathText = option(reads="checkpoint", group=DATA, metavar="DIR", help="checkpoint directory, or hub name")
    revision: str | None = revision_option("result")
    subfolder: str | None = subfolder_option("result")
    out: PathText = option(affects="nothing", group=DATA, metavar="DIR", help="directory of the scores")
    data: Texts = option(default=(), reads="documents", group=DATA, metavar="GLOB", help="held-out documents with text")
    benchmarks: FilesByName = option(
        default_factory=dict,
        reads="path",
        settle=files_by_name,
        group=DATA,
        flag="--benchmark",
        metavar="NAME=FILE",
        help="winogrande, copa, piqa, sciq, arc_easy, gsm8k or humaneval from a JSONL file",
    )
    limit: int | None = option(
        default=None, unset="all", group=DATA, metavar="N", help="use only the first N items of each benchmark"
    )
    run_generated_code: bool = option(default=False, group=DATA, help="let humaneval run the code that the model wrote")
    max_length: int | None = max_length_option(MACHINE)
    device: str = device_option()
    dtype: DtypeName = option(default="float32", group=MACHINE, help="precision of the model")
    batch_tokens: int = option(
        default=BATCH_TOKENS, affects="nothing", group=MACHINE, metavar="N", help="tokens per batch"
    )
    trust_remote_code: bool = trust_option("result")
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        require_device(self.device)
        if not self.data and not self.benchmarks:
            raise InputError(
                field="data",
                must="name something to score on",
                got="but there is nothing",
                do=f"give {named('data')}, {named('benchmarks')}, or both",
            )
        require(self.limit is None or self.limit >= 1, "limit", "at least 1", self.limit)
        require(self.batch_tokens >= 1, "batch_tokens", "at least 1", self.batch_tokens)

    @property
    def defining(self) -> dict[str, Any]:
        """The inputs of the scores."""
        incidental = affecting(type(self), "nothing")
        return {name: value for name, value in asdict(self).items() if name not in incidental}
