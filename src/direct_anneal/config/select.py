"""What a user asks of `select`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from dataclasses import field as having
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from direct_anneal.config.objective import (
    DEFAULT_OBJECTIVE,
    Filter,
    FilterCurvature,
    Gradients,
    Noise,
    ObjectiveConfig,
    Ratio,
    Reference,
    beside_of,
    objective_of,
)
from direct_anneal.config.options import described, require, require_device, settle
from direct_anneal.curvature import PAPER_SHARE, CurvatureName, Elbow, energy_share, fixed_number, widest_gap
from direct_anneal.data import listed
from direct_anneal.errors import InputError
from direct_anneal.features import place_at
from direct_anneal.gradients import ProjectionName, Reduction
from direct_anneal.model.checkpoint import DtypeName
from direct_anneal.solver import Unit

DEFAULT_EIGENPAIRS = 32
_WIDEST_SKETCH = 14_336  # R: with n-grams a matrix of 2 GiB in float64

# Options that objectives have in common: each has some of them, with defaults of its own.
OBJECTIVE_FIELDS = (
    *("target_scale", "filter", "damping", "filter_curvature", "gradients", "ngram_weight"),
    *("noise", "bands", "budget_ratio", "budget_reference"),
)
# Those that an objective beside the chosen one has as asked, too.
_SHARED_BESIDE = ("noise", "bands", "budget_ratio", "budget_reference")

# These change what is made of the features, not the features.
SOLVING_FIELDS = frozenset(
    {
        *("num_samples", "num_tokens", "fraction", "objective", "objective_options", "plugin", "beside"),
        *OBJECTIVE_FIELDS,
        *("relax_budget", "curvature", "num_eigenpairs", "elbow", "num_stiff"),
        *("floors", "ceilings", "quota_unit", "force_in", "force_out"),
    }
)

# These change where and how fast a run goes, not what it gives.
_INCIDENTAL = frozenset(
    {"out", "overwrite", "device", "batch_tokens", "engine", "ray_address", "workers", "features", "plugin", "beside"}
)


@dataclass(frozen=True, kw_only=True, repr=False)
class SelectConfig:
    """One selection, as it is asked for: an objective, and what it is chosen from.

    Attributes:
        model: checkpoint directory or hub name: the model at the onset of annealing.
        pool, validation: files, directories or globs.
        out: the run's directory.
        num_samples, num_tokens, fraction: how much to select; exactly one is given.
        objective: a name, or an `ObjectiveConfig` with its options. "matching" (ours: the mean of what is selected as
            far from the pool's as the validation set's is known to be, times `target_scale`, and near to that),
            "descent" (ours: as far as possible downhill on the validation loss, whatever else moves), "energy" (the
            paper's), or one of your own (docs/extending.md).
        objective_options: options that the objective alone knows, by name; "name=value" on the command line.
        plugin: modules to import first, which register objectives of their own.
        beside: objectives to solve for comparison: the manifest says what each would have chosen at this size.
        target_scale: of matching: near 0 asks for a small pool, 1 for more of the same as the validation set, more
            leans towards what the validation set has and the pool has not. 8 where left out.
        filter: f of what counts in each direction: "flat" (stiff ones count nothing), "newton" (1 / (λ + δ), not of
            energy) or "none"; flat for energy and newton for the others where left out.
        damping: δ of the filter newton, in units of λ₁; 0.01 where left out.
        filter_curvature: H of the filter newton: second moment of the gradients of the "validation" set, of the "pool",
            or the mean of "both"; both where left out, and validation for a curvature that is no empirical Fisher.
        gradients: "raw" or "unit" (of length 1); raw for energy and unit for the others where left out.
        ngram_weight: how much documents are like each other by their n-grams of tokens, beside their gradients, which
            count 1; 0 for gradients alone. 1 where left out, and 0 for raw gradients, other filters than newton, and
            the curvature of the validation set alone, which know of none.
        noise: stiff cost of gradients as they are ("raw", the paper's) or around their mean ("centred").
        bands: m, stiff budgets of their own for as many parts of the stiff spectrum.
        budget_ratio: the stiff budget per selected sample, in units of the reference's mean stiff cost, or "none"; 1.0
            for energy and none for the others where left out.
        budget_reference: "pool" (the paper's) or "validation" (its held-out mean).
        relax_budget: raise an infeasible budget to 1.1 times the least feasible one, and say so.
        curvature: "empirical-fisher" (the paper's), "mc-fisher", "ggn" or "hessian".
        num_eigenpairs: k, how many of the leading ones are sought for ggn and hessian; 32 where left out.
        elbow: share of the spectrum's energy that is stiff, or "gap": up to where it falls most.
        num_stiff: s itself, instead of an elbow.
        floors, ceilings: domain → how much of the selection it has at least, or at most: a share of it (a float, 0.1)
            or a number (an integer, 500); "domain=0.1" on the command line.
        quota_unit: what floors and ceilings count, "samples" or "tokens"; as the size is given, where left out.
        force_in, force_out: files of ids, one a line, of documents that must, or must not, be selected.
        sketch_size: R.
        projection: "two-sided" or "gaussian".
        reduction: "mean" or "sum" of a sample's token losses.
        parameters: patterns of the names of the parameters whose gradients count; all where left out.
        optimizer: saved state of Adam (optimizer.pt); gradients are then taken in its geometry (`adam_scales`).
        max_length: T, tokens of a window; the model's context, at most 2048, where left out.
        text_field, id_field, domain_field: names in the documents' records; of several, the first that a record has.
        prompt_field: the same of what precedes the text and is not to be predicted: text, or tokens before `input_ids`.
        token_dtype: "uint16" or "uint32", of files of tokens that do not say it; by the vocabulary where left out.
        eos_id: the token that ends a document in headerless files of tokens; the model's where left out.
        seed: of the projection.
        device, dtype: where and in which precision the model runs; sketches add up in float32 in any case.
        batch_tokens: padded tokens of a batch, found by itself where left out; does not change the result beyond float
            rounding (see `features.extract`).
        engine: "local", this process; or "ray", workers on this machine or many, with a model each.
        ray_address: of the cluster; RAY_ADDRESS of the environment, or else this machine, where left out.
        workers: how many, for ray; one for each GPU, or each core, where left out.
        features: where shards are written, if not below `out`: any path or URL of fsspec ("s3://bucket/run"). They are
            fetched below `out` in the end. With ray, every machine must see it, or `out` where it is left out.
        trust_remote_code: run Python code that the checkpoint brings.
        overwrite: replace an earlier run in `out`; its features are used where they still fit.

    Raises:
        InputError: a value is out of range, the size is given never or twice, or two options exclude each other.
    """

    model: str
    pool: tuple[str, ...]
    validation: tuple[str, ...]
    out: str
    num_samples: int | None = None
    num_tokens: int | None = None
    fraction: float | None = None
    objective: str | ObjectiveConfig = DEFAULT_OBJECTIVE
    objective_options: Mapping[str, Any] | None = None
    plugin: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    target_scale: float | None = None
    filter: Filter | None = None
    damping: float | None = None
    filter_curvature: FilterCurvature | None = None
    gradients: Gradients | None = None
    ngram_weight: float | None = None
    noise: Noise | None = None
    bands: int | None = None
    budget_ratio: Ratio | None = None
    budget_reference: Reference | None = None
    relax_budget: bool = False
    curvature: CurvatureName = "empirical-fisher"
    num_eigenpairs: int | None = None
    elbow: float | Literal["gap"] = PAPER_SHARE
    num_stiff: int | None = None
    floors: Mapping[str, int | float] = having(default_factory=dict)
    ceilings: Mapping[str, int | float] = having(default_factory=dict)
    quota_unit: Unit | None = None
    force_in: str | None = None
    force_out: str | None = None
    sketch_size: int = 2048
    projection: ProjectionName = "two-sided"
    reduction: Reduction = "mean"
    parameters: tuple[str, ...] | None = None
    optimizer: str | None = None
    max_length: int | None = None
    text_field: str | tuple[str, ...] = "text"
    id_field: str | tuple[str, ...] = "id"
    domain_field: str | tuple[str, ...] = "domain"
    prompt_field: str | tuple[str, ...] | None = None
    token_dtype: Literal["uint16", "uint32"] | None = None
    eos_id: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: DtypeName = "float32"
    batch_tokens: int | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int | None = None
    features: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False

    def __repr__(self) -> str:
        return described(self)

    def __post_init__(self) -> None:
        settle(self)
        require(isinstance(self.objective, str | ObjectiveConfig), "objective", "a name", repr(self.objective))
        if self.objective_options is not None:
            object.__setattr__(self, "objective_options", _named_values(self.objective_options))
        for module in self.plugin:
            import_plugin(module)
        objectives = (self.chosen_objective, *self.other_objectives.values())
        for field in ("floors", "ceilings"):
            object.__setattr__(self, field, _amounts(field[:-1], getattr(self, field)))
        require(self.parameters != (), "parameters", "patterns", "none")
        sizes = {"num_samples": self.num_samples, "num_tokens": self.num_tokens, "fraction": self.fraction}
        given = [name for name, size in sizes.items() if size is not None]
        if len(given) != 1:
            raise InputError(
                "the size of the selection must be given once, by --num-samples, --num-tokens or --fraction; got "
                f"{' and '.join('--' + name.replace('_', '-') for name in given) or 'none'}"
            )
        require(self.num_samples is None or self.num_samples >= 1, "num_samples", "at least 1", self.num_samples)
        require(self.num_tokens is None or self.num_tokens >= 2, "num_tokens", "at least 2", self.num_tokens)
        require(self.fraction is None or 0 < self.fraction <= 1, "fraction", "in (0, 1]", self.fraction)
        require(1 <= self.sketch_size <= 65536, "sketch_size", "in 1..65536", self.sketch_size)
        require(self.max_length is None or self.max_length >= 2, "max_length", "at least 2", self.max_length)
        require(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", "at least 1", self.batch_tokens)
        differs = {*listed(self.prompt_field)}.isdisjoint((*listed(self.text_field), "input_ids"))
        require(differs, "prompt_field", "another field than the text's", " ".join(listed(self.prompt_field)))
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        require(self.eos_id is None or self.eos_id >= 0, "eos_id", "at least 0", self.eos_id)
        sides = {getattr(objective, "filter_curvature", None) for objective in objectives}
        if (side := next(iter(sides & {"pool", "both"}), None)) and self.sketch_size > _WIDEST_SKETCH:
            raise InputError(
                f"--filter-curvature {side} takes a matrix of --sketch-size squared, at "
                f"most {_WIDEST_SKETCH}, got {self.sketch_size}: make it smaller, or pass --filter-curvature validation"
            )
        self._settle_curvature()
        self._check_engine()
        if self.engine == "ray" and self._is_empirical:  # then the model runs on workers alone
            require(self.device in ("cpu", "cuda"), "device", "cpu or cuda", self.device)
        else:
            require_device(self.device)

    def _check_engine(self) -> None:
        if self.features is not None:
            place_at(self.features)
        require(self.workers is None or self.workers >= 1, "workers", "at least 1", self.workers)
        if self.engine == "ray":
            from direct_anneal.distributed import check_installed  # not before: it brings Ray's part of us along

            check_installed()
            if self.device.startswith("cuda:"):
                raise InputError(
                    f"--engine ray gives each worker a GPU of its own, got --device {self.device}: pass --device cuda"
                )
            return
        for field in ("workers", "ray_address"):
            if (value := getattr(self, field)) is not None:
                flag = "--" + field.replace("_", "-")
                raise InputError(f"{flag} is for --engine ray, got {value} without it: pass both, or neither")

    def _settle_curvature(self) -> None:
        require(self.elbow == "gap" or 0 < self.elbow <= 1, "elbow", 'in (0, 1], or "gap"', self.elbow)
        require(self.num_stiff is None or self.num_stiff >= 1, "num_stiff", "at least 1", self.num_stiff)
        if self.num_stiff is not None and self.elbow != PAPER_SHARE:
            raise InputError(
                f"--num-stiff {self.num_stiff} stands instead of an elbow, but --elbow {self.elbow} is given, too: "
                "leave one out"
            )
        if self.curvature != "empirical-fisher" and self.reduction != "mean":
            raise InputError(
                f"--curvature {self.curvature} is of the mean token loss, which needs --reduction mean, got "
                f"{self.reduction}: change one of them"
            )
        if self.curvature not in ("ggn", "hessian"):
            if self.num_eigenpairs is not None:
                raise InputError(
                    f"--num-eigenpairs is of --curvature ggn and hessian, but the curvature is {self.curvature}, which "
                    "gives all of them: leave it out"
                )
            return
        if self.dtype != "float32":
            raise InputError(
                f"--curvature {self.curvature} differentiates twice, which needs --dtype float32, got {self.dtype}: "
                "change one of them"
            )
        if self.optimizer is not None:
            raise InputError(
                f"--curvature {self.curvature} knows no geometry but the parameters' own: leave out --optimizer, or "
                "take a Fisher"
            )
        pairs = DEFAULT_EIGENPAIRS if self.num_eigenpairs is None else self.num_eigenpairs
        require(1 <= pairs <= self.sketch_size, "num_eigenpairs", f"in 1..{self.sketch_size} (--sketch-size)", pairs)
        require(
            self.num_stiff is None or self.num_stiff <= pairs,
            "num_stiff",
            f"at most the {pairs} of --num-eigenpairs",
            self.num_stiff,
        )
        object.__setattr__(self, "num_eigenpairs", pairs)

    @cached_property
    def chosen_objective(self) -> ObjectiveConfig:
        """The objective that was asked for, with every option filled in.

        Raises:
            InputError: there is none of this name, or its options do not fit it or each other.
        """
        given = {name: getattr(self, name) for name in OBJECTIVE_FIELDS}
        return objective_of(self.objective, given, self.objective_options or {}, self.curvature)

    @cached_property
    def other_objectives(self) -> dict[str, ObjectiveConfig]:
        """Those of `beside`, by name, with their own defaults but for noise and budget, which are as asked."""
        shared = {name: getattr(self, name) for name in _SHARED_BESIDE}
        return {name: beside_of(name, shared, self.curvature) for name in self.beside}

    @property
    def needs(self) -> frozenset[str]:
        """Columns of the documents that an objective asked for looks at."""
        return self.chosen_objective.needs.union(*(one.needs for one in self.other_objectives.values()))

    @property
    def _is_empirical(self) -> bool:
        return self.curvature == "empirical-fisher"

    @property
    def elbow_rule(self) -> Elbow:
        """Where stiff ends."""
        if self.num_stiff is not None:
            return fixed_number(self.num_stiff)
        return widest_gap if self.elbow == "gap" else energy_share(self.elbow)

    @property
    def in_full(self) -> dict[str, Any]:
        """Every field, with the objective's options filled in: what a run records."""
        options = self.chosen_objective.options()
        own = {name: value for name, value in options.items() if name not in OBJECTIVE_FIELDS}
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content |= {name: options.get(name) for name in OBJECTIVE_FIELDS}
        return content | {"objective": self.chosen_objective.name, "objective_options": own or None}

    @property
    def defining(self) -> dict[str, Any]:
        """What the result depends on."""
        return {name: value for name, value in self.in_full.items() if name not in _INCIDENTAL}

    def size_of(self, num_tokens: NDArray[np.int64]) -> tuple[int | None, int | None]:
        """K or B, for a pool of documents of these lengths, shape (N,).

        Raises:
            InputError: the pool is too small.
        """
        count, tokens = len(num_tokens), int(num_tokens.sum())
        if self.num_tokens is not None:
            if not num_tokens.min() <= self.num_tokens <= tokens:
                raise InputError(
                    f"--num-tokens must lie between the shortest document and the whole pool ({num_tokens.min():,} to "
                    f"{tokens:,} tokens), got {self.num_tokens:,}"
                )
            return None, self.num_tokens
        if self.num_samples is not None:
            if self.num_samples > count:
                raise InputError(
                    f"--num-samples must be at most the pool's {count:,} usable documents, got {self.num_samples:,}"
                )
            return self.num_samples, None
        assert self.fraction is not None
        return max(1, math.floor(self.fraction * count + 0.5)), None


@dataclass(frozen=True, kw_only=True, repr=False)
class FeaturesConfig(SelectConfig):
    """What features depend on. The fields that only choosing depends on are there, and mean nothing."""

    fraction: float | None = 1.0

    @property
    def defining(self) -> dict[str, Any]:
        """What the features depend on."""
        return {name: value for name, value in super().defining.items() if name not in SOLVING_FIELDS}


def _amounts(flag: str, given: object) -> dict[str, int | float]:
    """Domain → amount, from that or from texts "domain=amount", in the order of domains."""
    pairs: list[tuple[Any, Any]] = []
    domain: Any
    amount: Any
    if isinstance(given, Mapping):
        pairs += given.items()
    else:
        for text in given if isinstance(given, list | tuple) else [given]:
            domain, _, amount = text.rpartition("=") if isinstance(text, str) else (text, "", None)
            pairs.append((domain, amount))
    found: dict[str, int | float] = {}
    for domain, amount in pairs:
        if isinstance(amount, str):
            try:
                amount = int(amount) if re.fullmatch(r"\d+", amount) else float(amount)
            except ValueError:
                amount = None
        share = isinstance(amount, float) and 0 <= amount <= 1
        number = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0
        if not isinstance(domain, str) or not domain or not (share or number):
            raise InputError(
                f"--{flag} must be DOMAIN=SHARE, a share in 0.0..1.0, or DOMAIN=NUMBER, a whole number, got "
                f"{f'{domain}={amount}' if amount is not None else given}"
            )
        found[domain] = amount
    return dict(sorted(found.items()))


def _named_values(given: object) -> dict[str, Any]:
    """Name → value, from that or from texts "name=value", whose values are numbers, true, false or texts."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    found: dict[str, Any] = {}
    for text in given if isinstance(given, list | tuple) else [given]:
        name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        require(bool(name and equals), "objective_options", "NAME=VALUE", text)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def import_plugin(module: str) -> None:
    """Import a module that registers objectives.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise InputError(
            field="plugin",
            must="name a module that Python can import",
            got=f"but {module}: {error}",
            do="install it, or run with PYTHONPATH set to where it lies",
        ) from error
