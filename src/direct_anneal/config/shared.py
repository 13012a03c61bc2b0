"""Options that several commands have."""

from __future__ import annotations

from typing import Any

from direct_anneal.config.names import PAPER_SHARE, Engine, SpecialTokens
from direct_anneal.config.option import Affects, configuration, option
from direct_anneal.config.options import require
from direct_anneal.config.types import Names
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

DATA = "input and output"
MACHINE = "machine"
CURVATURE = "curvature"


def trust_option(affects: Affects = "nothing") -> Any:
    """Declare whether a checkpoint's own Python code may run."""
    return option(default=False, affects=affects, group=MACHINE, help="run Python code that the checkpoint brings")


def revision_option(affects: Affects = "nothing") -> Any:
    """Declare the revision of a checkpoint."""
    return option(
        default=None,
        unset="the main branch",
        affects=affects,
        group=DATA,
        metavar="R",
        help="branch, tag or commit of a hub name",
    )


def subfolder_option(affects: Affects = "nothing") -> Any:
    """Declare the place of a checkpoint in its directory or repository."""
    return option(
        default=None,
        affects=affects,
        group=DATA,
        metavar="PATH",
        help="folder of the checkpoint in its directory or repository",
    )


def overwrite_option(help: str = "replace an earlier run in the output directory") -> Any:
    """Declare whether an earlier result may be replaced."""
    return option(default=False, affects="nothing", group=DATA, help=help)


def track_option(group: str = "") -> Any:
    """Declare the tracker that gets a run's numbers."""
    return option(
        default="none",
        affects="nothing",
        group=group,
        help="also log the numbers to this tool; tensorboard's files are in OUT/tracking",
    )


def device_option() -> Any:
    """Declare the device of the model."""
    return option(default="cpu", affects="nothing", group=MACHINE, help="device of the model: cpu, cuda or cuda:1")


def max_length_option(group: str, affects: Affects = "result") -> Any:
    """Declare the length of a window in tokens."""
    return option(
        default=None,
        unset="the context, at most 2048",
        affects=affects,
        group=group,
        metavar="T",
        help="tokens per window",
    )


def elbow_option() -> Any:
    """Declare the cutoff rule."""
    return option(
        default=PAPER_SHARE,
        affects="solving",
        follows=("num_stiff",),
        group=CURVATURE,
        metavar="E",
        help="the stiff directions hold this share of the curvature; or gap: cut where the spectrum falls most",
    )


@configuration
class RecordFields:
    """The fields of a record's text, id and domain."""

    text_field: Names = option(
        default="text",
        affects="features",
        group=DATA,
        metavar="NAME",
        help="field with the text; of several, the first that a record has",
    )
    id_field: Names = option(
        default="id",
        affects="features",
        group=DATA,
        metavar="NAME",
        help="field with the id; a record without one is called file:row",
    )
    domain_field: Names = option(
        default="domain",
        affects="features",
        group=DATA,
        metavar="NAME",
        help="field with the domain; a record without one has its file's name",
    )
    special_tokens: SpecialTokens = option(
        default="text",
        affects="features",
        group=DATA,
        help="special tokens in texts: read them as text, keep them as tokens, or drop the document",
    )


@configuration
class EngineConfig:
    """The engine: this process, or workers of a Ray cluster."""

    engine: Engine = option(
        default="local", affects="nothing", group=MACHINE, help="this process, or workers of a Ray cluster"
    )
    ray_address: str | None = option(
        default=None,
        unset="RAY_ADDRESS, or this machine",
        affects="nothing",
        group=MACHINE,
        metavar="A",
        help="address of the Ray cluster",
    )
    workers: int | None = option(
        default=None,
        unset="one for each GPU, or core",
        affects="nothing",
        group=MACHINE,
        metavar="W",
        help="number of Ray workers; each holds a model, or solves a part of the problem",
    )

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "workers", "at least 1", self.workers)
        if self.engine == "ray":
            return
        for field in ("workers", "ray_address"):
            if (value := getattr(self, field)) is not None:
                raise InputError(
                    field=field,
                    must=f"be left out unless {named('engine')} is ray",
                    got=value,
                    do="pass both, or neither",
                )
