"""The options of features: model, documents and the way gradients are taken."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any, Literal

from direct_anneal.config.choice import named_values
from direct_anneal.config.jobs import job_of
from direct_anneal.config.names import SKETCH_SIZE, DtypeName, ProjectionName, Reduction
from direct_anneal.config.objective import ObjectiveConfig, objective_of
from direct_anneal.config.option import affecting, configuration, option
from direct_anneal.config.options import require, require_seed
from direct_anneal.config.shared import (
    DATA,
    MACHINE,
    EngineConfig,
    RecordFields,
    device_option,
    max_length_option,
    overwrite_option,
    revision_option,
    subfolder_option,
    trust_option,
)
from direct_anneal.config.types import OptionalNames, OptionalPath, OptionalTexts, OptionalValues, PathText, Texts
from direct_anneal.errors import InputError
from direct_anneal.errors import option as named

GRADIENTS = "gradients"


@configuration
class FeaturesConfig(EngineConfig, RecordFields):
    """Options of `features`.

    Raises:
        InputError: a value is out of range, or two options exclude each other.
    """

    model: PathText = option(
        reads="checkpoint", affects="features", group=DATA, metavar="DIR", help="checkpoint directory, or hub name"
    )
    revision: str | None = revision_option("features")
    subfolder: str | None = subfolder_option("features")
    chooser: OptionalPath = option(
        default=None,
        reads="checkpoint",
        unset="the model itself",
        affects="features",
        group=DATA,
        metavar="CKPT",
        help="smaller checkpoint that chooses for the model: its tokens, gradients, losses and curvature are used",
    )
    pool: Texts = option(
        reads="documents",
        affects="features",
        group=DATA,
        metavar="GLOB",
        help="candidate documents: files, directories or globs",
    )
    validation: Texts = option(
        reads="documents",
        affects="features",
        group=DATA,
        metavar="GLOB",
        help="the target: documents like those that the model should be good at",
    )
    retain: OptionalTexts = option(
        default=None,
        reads="documents",
        unset="none",
        affects="features",
        group=DATA,
        metavar="GLOB",
        help="text that must not get worse: the choice helps it at least as much as random documents do",
    )
    out: PathText = option(affects="nothing", group=DATA, metavar="DIR", help="the run's directory")
    prompt_field: OptionalNames = option(
        default=None,
        affects="features",
        group=DATA,
        metavar="NAME",
        help="field with a prompt, which the model sees before the text and does not predict; or several",
    )
    token_dtype: Literal["uint16", "uint32"] | None = option(
        default=None,
        unset="by the size of the vocabulary",
        affects="features",
        group=DATA,
        help="type of the tokens in .npy, and in .ds without metadata",
    )
    eos_id: int | None = option(
        default=None,
        unset="the model's",
        affects="features",
        group=DATA,
        metavar="ID",
        help="token that ends a document in .npy",
    )
    overwrite: bool = overwrite_option("replace an earlier run in the output directory; fitting features are kept")
    sketch_size: int = option(
        default=SKETCH_SIZE, affects="features", group=GRADIENTS, metavar="R", help="numbers per sketched gradient"
    )
    projection: ProjectionName = option(
        default="two-sided", affects="features", group=GRADIENTS, help="the fast sketch, or the paper's dense one"
    )
    reduction: Reduction = option(
        default="mean", affects="features", group=GRADIENTS, help="how a document's token losses are combined"
    )
    parameters: OptionalTexts = option(
        default=None,
        unset="all",
        affects="features",
        group=GRADIENTS,
        metavar="PATTERN",
        help='names of the parameters whose gradients count, such as "*.mlp.*"',
    )
    optimizer: OptionalPath = option(
        default=None,
        reads="path",
        affects="features",
        group=GRADIENTS,
        metavar="FILE",
        help="Adam's saved state, optimizer.pt: gradients are scaled as Adam scales them",
    )
    max_length: int | None = max_length_option(GRADIENTS, "features")
    seed: int = option(
        default=0, affects="features", group=GRADIENTS, metavar="S", help="random seed of the projection"
    )
    device: str = device_option()
    dtype: DtypeName = option(default="float32", affects="features", group=MACHINE, help="precision of the model")
    batch_tokens: int | None = option(
        default=None,
        unset="as memory allows",
        affects="nothing",
        group=MACHINE,
        metavar="N",
        help="padded tokens of a batch; changes results by rounding only",
    )
    features: OptionalPath = option(
        default=None,
        unset="below the output directory",
        affects="nothing",
        group=MACHINE,
        metavar="URL",
        help="write shards to this place, such as s3://bucket/run, and fetch them at the end",
    )
    trust_remote_code: bool = trust_option("features")

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        require(self.parameters != (), "parameters", "patterns", "none")
        require(self.retain != (), "retain", "files, directories or globs", "none")
        require(1 <= self.sketch_size <= 65536, "sketch_size", "in 1..65536", self.sketch_size)
        require(self.max_length is None or self.max_length >= 2, "max_length", "at least 2", self.max_length)
        require(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", "at least 1", self.batch_tokens)
        differs = {*_listed(self.prompt_field)}.isdisjoint((*_listed(self.text_field), "input_ids"))
        require(differs, "prompt_field", "another field than the text's", " ".join(_listed(self.prompt_field)))
        require_seed(self.seed)
        require(self.eos_id is None or self.eos_id >= 0, "eos_id", "at least 0", self.eos_id)
        if self.engine == "ray" and self.device.startswith("cuda:"):
            raise InputError(
                field="device",
                must="be cuda for the engine ray, which gives each worker a GPU of its own",
                got=self.device,
                do="pass cuda",
            )

    @property
    def defining(self) -> dict[str, Any]:
        """The inputs of the result."""
        names = affecting(type(self), "features", "solving")
        return {name: value for name, value in self.in_full.items() if name in names}

    @property
    def in_full(self) -> dict[str, Any]:
        """Every field by name: what a run records."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@configuration
class ColumnsConfig(FeaturesConfig):
    """The columns that `features` computes: gradients, and losses along the path if asked for.

    Raises:
        InputError: a value is out of range, or two options exclude each other.
    """

    path: OptionalValues = option(
        default=None,
        settle=named_values,
        bare=(),
        affects="features",
        group=GRADIENTS,
        metavar="NAME=VALUE",
        help="also take losses along the descent path, for the objectives path and blend; with options of path",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path_objective  # noqa: B018, which checks its options

    @cached_property
    def path_objective(self) -> ObjectiveConfig | None:
        """The objective path with these options; None where no losses are asked for.

        Raises:
            InputError: they do not fit.
        """
        return None if self.path is None else objective_of("path", {}, self.path, "empirical-fisher")


@configuration
class ComputeConfig(ColumnsConfig):
    """Options of `features`.

    Raises:
        InputError: a value is out of range, or two options exclude each other.
    """

    shards: str | None = option(
        default=None,
        unset="all",
        affects="nothing",
        group=MACHINE,
        metavar="I/N",
        help="run as job I of N (0 to N - 1): only the shards I, I + N, I + 2 N, ...; merge puts the jobs together",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is None:
            return
        job_of(self.shards)
        if self.engine == "ray" or self.features is not None:
            raise InputError(
                field="shards",
                must=f"be left out with {named('engine')} ray and with {named('features')}",
                got=self.shards,
                do="take one way of dividing the work",
            )

    @property
    def whole(self) -> ColumnsConfig:
        """The plan that all jobs share."""
        return ColumnsConfig(**{each.name: getattr(self, each.name) for each in fields(ColumnsConfig)})


def _listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()
