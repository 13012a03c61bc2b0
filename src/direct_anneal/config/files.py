"""The options of the commands that read or write files beside `select`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from direct_anneal.config.names import TrackerName
from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require, require_seed
from direct_anneal.config.shared import overwrite_option, track_option, trust_option
from direct_anneal.config.types import OptionalBytes, OptionalPath, PathText
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named_option

TrainerFormat = Literal["hf", "jsonl", "parquet", "olmo-core", "megatron", "nanotron", "mds"]

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def num_bytes(name: str, given: object) -> int:
    """Return a number of bytes, or a text such as "256MiB"."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    size = re.fullmatch(rf"(\d+) ?({'|'.join(_UNITS)})", given) if isinstance(given, str) else None
    if size is None:
        raise InputError(field=name, must="be a number of bytes, KiB, MiB or GiB, such as 256MiB", got=given)
    return int(size[1]) * _UNITS[size[2]]


@configuration
class ExportConfig:
    """Options of `export`.

    Raises:
        InputError: a value is out of range.
    """

    run: PathText = option(
        kw_only=False, reads="run", metavar="RUN_DIR", help="the directory of a finished select or solve"
    )
    to: TrainerFormat = option(help="the trainer's format")
    out: PathText = option(
        affects="nothing", metavar="DIR", help="new directory for the export; it is written completely or not at all"
    )
    shard_size: OptionalBytes = option(
        default=None,
        settle=num_bytes,
        unset="the format's own",
        metavar="SIZE",
        help="size of one file before compression, such as 256MiB",
    )
    seed: int = option(default=0, metavar="S", help="random seed of the documents' order")
    part: Literal["selected", "replay", "both"] = option(
        default="selected", help="the chosen documents, the general text beside them, or both, shuffled together"
    )
    mixture_share: float | None = option(
        default=None,
        unset="1, or what replay leaves",
        metavar="X",
        help="share of the training data, for the printed configuration; the rest is the stable phase's data",
    )
    sequence_length: int | None = option(
        default=None,
        unset="the run's window",
        metavar="T",
        help="tokens per sample of the trainer, for olmo-core and mds; mds is cut to this length",
    )
    eos_id: int | None = option(
        default=None, unset="the checkpoint's", metavar="ID", help="token after each document, in formats of tokens"
    )
    push_to_hub: str | None = option(
        default=None,
        unset="nothing is uploaded",
        affects="nothing",
        metavar="USER/NAME",
        help="upload the finished export to this dataset repository of the hub; a new one is private",
    )
    trust_remote_code: bool = trust_option()
    overwrite: bool = overwrite_option("replace an earlier export in the output directory")

    def __post_init__(self) -> None:
        require(self.shard_size is None or self.shard_size >= 1, "shard_size", "at least 1", self.shard_size)
        require_seed(self.seed)
        share = self.mixture_share
        require(share is None or 0 < share <= 1, "mixture_share", "in (0, 1]", share)
        length = self.sequence_length
        require(length is None or length >= 2, "sequence_length", "at least 2", length)
        require(self.eos_id is None or self.eos_id >= 0, "eos_id", "at least 0", self.eos_id)
        repository = self.push_to_hub
        is_name = repository is None or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository) is not None
        require(is_name, "push_to_hub", "USER/NAME", repository)


@configuration
class ConvertConfig:
    """Options of `convert`."""

    checkpoint: PathText = option(
        kw_only=False,
        reads="path",
        metavar="DCP_DIR",
        help="distributed checkpoint: directory with .metadata and .distcp files",
    )
    model_config: PathText = option(
        reads="path", metavar="PATH", help="the model's config.json, or its directory; a tokenizer there is copied"
    )
    out: PathText = option(
        affects="nothing",
        metavar="DIR",
        help="new directory for the checkpoint; it is written completely or not at all",
    )


@configuration
class CompareConfig:
    """Options of `compare`.

    Raises:
        InputError: a value is out of range.
    """

    recipe: OptionalPath = option(
        kw_only=False,
        default=None,
        reads="path",
        metavar="RECIPE",
        help="YAML file with model, scenarios and arms; or use --from",
    )
    out: OptionalPath = option(
        default=None,
        unset="RUN_DIR-compared with --from",
        affects="nothing",
        metavar="DIR",
        help="directory of the results; an earlier comparison there is continued",
    )
    run: OptionalPath = option(
        default=None,
        reads="run",
        flag="--from",
        metavar="RUN_DIR",
        help="directory of a finished select, from which a recipe is written",
    )
    preset: Literal["quick", "standard"] = option(
        default="quick", help="how many documents, seeds and replay shares the recipe has"
    )
    workers: int = option(default=1, affects="nothing", metavar="W", help="training runs at the same time")
    track: TrackerName = track_option()

    def __post_init__(self) -> None:
        require(self.workers >= 1, "workers", "at least 1", self.workers)
        if (self.recipe is None) == (self.run is None):
            raise InputError(
                subject="compare",
                must="be given a recipe, or a finished run to write one from",
                got="but has both" if self.run else "but has neither",
                do=f"name one of them, the run with {named_option('run')}",
            )
        if self.run is None and self.out is None:
            raise InputError(field="out", must="be given with a recipe", got="none", do="name a directory")
        if self.run is None and self.preset != "quick":
            raise InputError(field="preset", must="go with a run", got=self.preset, do="edit the recipe instead")

    @property
    def directory(self) -> Path:
        """The directory of the comparison: the one that was given, or beside the run."""
        if self.out is not None:
            return Path(self.out)
        run = Path(str(self.run))
        return run.with_name(f"{run.resolve().name}-compared")


@configuration
class VerifyConfig:
    """Options of `verify`."""

    directory: PathText = option(
        kw_only=False, metavar="DIR", help="a run's directory, its features/, or one store below that"
    )


@configuration
class ReportConfig:
    """Options of `report`."""

    run: PathText = option(
        kw_only=False, reads="path", metavar="DIR", help="the directory of a finished select, solve or compare"
    )


@configuration
class DemoConfig:
    """Options of `demo`."""

    out: PathText = option(default="runs/demo", affects="nothing", metavar="DIR", help="directory of the demo")


@configuration
class InitConfig:
    """Options of `init`."""

    command: Literal["select", "features", "plan", "solve", "score", "anneal", "evaluate"] = option(
        default="select",
        kw_only=False,
        metavar="COMMAND",
        help="command to write the options of: select, features, plan, solve, score, anneal or evaluate",
    )
    out: OptionalPath = option(
        default=None, unset="COMMAND.yaml", affects="nothing", metavar="FILE", help="the file to write"
    )
    overwrite: bool = overwrite_option("replace a file that is there")


@configuration
class NoConfig:
    """No options."""
