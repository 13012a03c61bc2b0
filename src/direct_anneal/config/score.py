"""The options of `score` and `merge`."""

from __future__ import annotations

from typing import Literal

from direct_anneal.config.jobs import job_of
from direct_anneal.config.option import configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.shared import DATA, MACHINE, overwrite_option, trust_option
from direct_anneal.config.types import Amounts, Names, PathText, Texts
from direct_anneal.config.values import amounts, require_room
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

_SIZE = "choice"


@configuration
class CutConfig:
    """The size of a choice by scores, and the number of processes.

    At most one size is given: without one there are scores and no choice.

    Raises:
        InputError: a value is out of range, or more than one size is given.
    """

    fraction: float | None = option(
        default=None, group=_SIZE, metavar="F", help="write this share of the documents: the best"
    )
    num_samples: int | None = option(
        default=None, group=_SIZE, metavar="K", help="write this number of the best documents"
    )
    num_tokens: int | None = option(
        default=None,
        group=_SIZE,
        metavar="B",
        help="write about this number of tokens; for text they are estimated from its bytes",
    )
    floors: Amounts = option(
        default_factory=dict,
        settle=amounts,
        group=_SIZE,
        flag="--floor",
        metavar="DOMAIN=X",
        help="at least so much of a domain: a share of the choice (0.1), or a number in its unit (500)",
    )
    ceilings: Amounts = option(
        default_factory=dict,
        settle=amounts,
        group=_SIZE,
        flag="--ceiling",
        metavar="DOMAIN=X",
        help="at most so much of a domain: a share of the choice (0.1), or a number in its unit (500)",
    )
    exact: bool = option(default=False, group=_SIZE, help="cut exactly at the size, not at the edge of a bin of scores")
    workers: int | None = option(
        default=None, unset="one for each core", affects="nothing", group=MACHINE, metavar="W", help="processes"
    )

    def __post_init__(self) -> None:
        sizes = {"fraction": self.fraction, "num_samples": self.num_samples, "num_tokens": self.num_tokens}
        given = [name for name, size in sizes.items() if size is not None]
        if len(given) > 1:
            raise InputError(
                subject="the size of the choice", must="be given once", got=" and ".join(map(named, given))
            )
        require(self.num_samples is None or self.num_samples >= 1, "num_samples", "at least 1", self.num_samples)
        require(self.num_tokens is None or self.num_tokens >= 2, "num_tokens", "at least 2", self.num_tokens)
        require(self.fraction is None or 0 < self.fraction <= 1, "fraction", "in (0, 1]", self.fraction)
        require(self.workers is None or self.workers >= 1, "workers", "at least 1", self.workers)
        require_room(self.floors, self.ceilings)
        for name in ("exact", "floors", "ceilings"):
            if getattr(self, name) and not given:
                raise InputError(field=name, must="come with a size", do=f"pass {named('fraction')}, too")

    @property
    def is_given(self) -> bool:
        """True if anything is to be chosen."""
        return (self.num_samples, self.num_tokens, self.fraction) != (None, None, None)

    @property
    def num_workers(self) -> int:
        """The number of processes."""
        from direct_anneal.io.processes import num_cores  # what starts processes takes a while to load

        return self.workers or num_cores()


@configuration
class ScoreConfig(CutConfig):
    """Options of `score`.

    Raises:
        InputError: a value is out of range, or a job is to choose.
    """

    scorer: PathText = option(reads="path", group=DATA, metavar="DIR", help="a scorer that distil wrote")
    pool: Texts = option(reads="documents", group=DATA, metavar="GLOB", help="files, directories or globs")
    out: PathText = option(affects="nothing", group=DATA, metavar="DIR", help="directory of the scores")
    shards: str | None = option(
        default=None,
        unset="all",
        affects="nothing",
        group=MACHINE,
        metavar="I/N",
        help="run as job I of N (0 to N - 1): only the sources I, I + N, I + 2 N, ...; merge puts the jobs together",
    )
    text_field: Names = option(
        default="text", group=DATA, metavar="NAME", help="field with the text; of several, the first that a record has"
    )
    domain_field: Names = option(
        default="domain",
        group=DATA,
        metavar="NAME",
        help="field with the domain; a record without one has its file's name",
    )
    token_dtype: Literal["uint16", "uint32"] = option(
        default="uint32", group=DATA, help="type of the tokens in files that do not state one"
    )
    eos_id: int | None = option(
        default=None, group=DATA, metavar="ID", help="token that ends a document in headerless files of tokens"
    )
    overwrite: bool = overwrite_option("begin anew in the output directory")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is None:
            return
        job_of(self.shards)
        if self.is_given:
            raise InputError(field="shards", must="score alone", got=self.shards, do="give the size to merge")
        if self.overwrite:
            raise InputError(
                field="overwrite", must="be left out of jobs side by side", do="remove the directory before they start"
            )

    @property
    def job(self) -> tuple[int, int]:
        """(I, N)."""
        return (0, 1) if self.shards is None else job_of(self.shards)


@configuration
class MergeConfig(CutConfig):
    """Options of `merge`.

    Raises:
        InputError: a value is out of range, or more than one size is given.
    """

    run: PathText = option(
        kw_only=False, reads="path", metavar="DIR", help="the directory of the jobs of score, or of features"
    )
    trust_remote_code: bool = trust_option()
