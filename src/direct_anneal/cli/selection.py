"""`select` and `solve`: choosing documents, and choosing again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from direct_anneal.cli.shared import add_data_fields, quieten_transformers, require
from direct_anneal.errors import InputError


def add_select(commands: Any) -> None:
    """The command and its options; those not given are left out, so that --config and `SelectConfig` can fill them."""
    select = commands.add_parser(
        "select",
        help="choose documents from a pool",
        description="Choose documents from a pool for a checkpoint at the onset of annealing.",
        argument_default=argparse.SUPPRESS,
    )
    select.set_defaults(command=_select)
    select.add_argument("--config", metavar="FILE", help="YAML of these options; flags go before it")
    data = select.add_argument_group("what goes in, and where it comes out")
    data.add_argument("--model", metavar="DIR", help="checkpoint directory, or hub name")
    data.add_argument("--pool", action="append", metavar="GLOB", help="candidate documents; may be given several times")
    data.add_argument(
        "--validation", nargs="+", action="extend", metavar="GLOB", help="documents of what the model should be good at"
    )
    data.add_argument("--out", metavar="DIR", help="the run's directory")
    add_data_fields(data)
    data.add_argument(
        "--prompt-field", metavar="NAME", help="field with what precedes the text and is not predicted (none)"
    )
    data.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run in --out; fitting features are kept"
    )
    _add_size(select)
    method = select.add_argument_group("the method")
    _add_method(method)
    method.add_argument("--sketch-size", type=int, metavar="R", help="numbers per sketched gradient (2048)")
    method.add_argument(
        "--projection", choices=("two-sided", "gaussian"), help="fast (default), or the paper's dense one"
    )
    method.add_argument("--reduction", choices=("mean", "sum"), help="of a document's token losses (mean)")
    method.add_argument(
        "--parameters", nargs="+", metavar="PATTERN", help='names whose gradients count, as "*.mlp.*" (all of them)'
    )
    method.add_argument(
        "--optimizer", metavar="FILE", help="Adam's saved state, optimizer.pt: take gradients in its geometry"
    )
    method.add_argument("--max-length", type=int, metavar="T", help="tokens of a window (the context, at most 2048)")
    method.add_argument("--seed", type=int, metavar="S", help="of the projection (0)")
    _add_constraints(select)
    machine = select.add_argument_group("the machine")
    machine.add_argument("--device", help="cpu (default) or cuda")
    machine.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (float32)")
    machine.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (as memory allows)")
    machine.add_argument("--engine", choices=("local", "ray"), help="this process (local), or workers of a Ray cluster")
    machine.add_argument("--ray-address", metavar="A", help="of the cluster (RAY_ADDRESS, or else this machine)")
    machine.add_argument(
        "--workers", type=int, metavar="W", help="for ray: how many models at once (one a GPU, or core)"
    )
    machine.add_argument(
        "--features",
        metavar="URL",
        help="write shards there, as s3://bucket/run, and fetch them below --out in the end",
    )
    machine.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")


def add_solve(commands: Any) -> None:
    """The command and its options; those not given are left out, so that they stay as they were for the run."""
    solve = commands.add_parser(
        "solve",
        help="choose again from a run's features, in seconds",
        description="Choose again from the features of a select run: another size, objective, budget or quota. What is "
        "not given is as it was for that run, which is left as it is.",
        argument_default=argparse.SUPPRESS,
    )
    solve.set_defaults(command=_solve)
    solve.add_argument("run", metavar="RUN_DIR", help="what was --out of select")
    solve.add_argument("--out", metavar="DIR", help="the new run's directory")
    solve.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    solve.add_argument(
        "--frontier",
        nargs="?",
        const="",
        metavar="X1,X2,...",
        help="trace objective and composition over these budget ratios (without any: over eight)",
    )
    _add_size(solve)
    _add_method(solve.add_argument_group("the method"))
    _add_constraints(solve)


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_argument_group("how much; one of these")
    size.add_argument("--num-samples", type=int, metavar="K", help="documents")
    size.add_argument("--num-tokens", type=int, metavar="B", help="tokens")
    size.add_argument("--fraction", type=float, metavar="F", help="share of the pool's documents")


def _add_method(method: argparse._ArgumentGroup) -> None:
    method.add_argument(
        "--objective",
        choices=("energy", "descent"),
        help="the paper's (default), or ours that knows the sign of progress",
    )
    method.add_argument(
        "--filter",
        choices=("newton", "flat", "none"),
        help="what is gained in a direction: damped Newton (descent), nothing if stiff (energy), or as it is",
    )
    method.add_argument("--damping", type=float, metavar="D", help="of newton, in units of the largest curvature (0.1)")
    method.add_argument("--gradients", choices=("raw", "unit"), help="as they are (energy), or of length 1 (descent)")
    method.add_argument("--noise", choices=("raw", "centred"), help="stiff cost of gradients (raw), or around the mean")
    method.add_argument(
        "--bands", type=int, metavar="M", help="stiff budgets, for parts of equal energy of the spectrum (1)"
    )
    method.add_argument(
        "--budget-ratio",
        type=float,
        metavar="X",
        help="stiff budget per selected document, in units of the reference's mean (1.0; paper: 0.1)",
    )
    method.add_argument("--budget-reference", choices=("pool", "validation"), help="whose mean stiff cost (pool)")
    method.add_argument(
        "--relax-budget", action="store_true", help="raise an infeasible budget to 1.1 times the least feasible"
    )
    method.add_argument(
        "--curvature",
        choices=("empirical-fisher", "mc-fisher", "ggn", "hessian"),
        help="of what the spectrum is (empirical-fisher, the paper's)",
    )
    method.add_argument(
        "--num-eigenpairs", type=int, metavar="N", help="leading ones that are sought, for ggn and hessian (32)"
    )
    method.add_argument(
        "--elbow",
        type=_elbow,
        metavar="E",
        help="share of the curvature that is stiff (0.945), or gap, its widest",
    )
    method.add_argument("--num-stiff", type=int, metavar="S", help="stiff directions, instead of an elbow")


def _add_constraints(parser: argparse.ArgumentParser) -> None:
    constraints = parser.add_argument_group("domains and single documents")
    for side, help in (("floor", "at least"), ("ceiling", "at most")):
        constraints.add_argument(
            f"--{side}",
            dest=f"{side}s",
            action="append",
            metavar="DOMAIN=X",
            help=f"{help} so much of a domain: a share of the selection (0.1) or a number (500); may be given several "
            "times",
        )
    constraints.add_argument(
        "--quota-unit", choices=("samples", "tokens"), help="what floors and ceilings count (as the size is given)"
    )
    for where in ("in", "out"):
        constraints.add_argument(
            f"--force-{where}",
            metavar="FILE",
            help=f"ids, one a line, of documents that must {'' if where == 'in' else 'not '}be chosen",
        )


def _elbow(text: str) -> float | str:
    return text if text == "gap" else float(text)


def _select(options: dict[str, Any]) -> None:
    given = {**_from_file(options.pop("config", None)), **options}
    require(given, "select", ("model", "pool", "validation", "out"))
    from rich.console import Console

    from direct_anneal.pipeline import select
    from direct_anneal.progress import for_stream
    from direct_anneal.report import print_summary

    quieten_transformers()
    run = select(progress=for_stream(sys.stderr), **given)
    print_summary(run.manifest, run.out, Console())


def _solve(options: dict[str, Any]) -> None:
    require(options, "solve", ("out",))
    from rich.console import Console

    from direct_anneal.pipeline import reselect
    from direct_anneal.progress import for_stream
    from direct_anneal.report import print_frontier, print_summary

    if (ratios := options.pop("frontier", None)) is not None:
        options["frontier"] = _ratios(ratios)
    quieten_transformers()
    run = reselect(options.pop("run"), progress=for_stream(sys.stderr), **options)
    print_summary(run.manifest, run.out, Console())
    if ratios is not None:
        print_frontier(run.manifest["frontier"], run.out, Console())


def _ratios(text: str) -> tuple[float, ...]:
    """Of "0.1,0.5"; none of an empty text, for a grid of our own."""
    try:
        ratios = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        ratios = (-1.0,)
    if not all(0 < ratio <= 1e6 for ratio in ratios):
        raise InputError(f"--frontier must be budget ratios above 0, separated by commas, got {text}")
    return ratios


def _from_file(path: str | None) -> dict[str, Any]:
    """Options from a YAML or JSON file, by the names of `SelectConfig`'s fields; flags go before them."""
    if path is None:
        return {}
    from dataclasses import fields

    import yaml

    from direct_anneal.pipeline import SelectConfig

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"--config must be a YAML file of options, but {path}: {' '.join(str(error).split())}"
        ) from error
    known = {field.name for field in fields(SelectConfig)}
    if not isinstance(content, dict) or not set(content) <= known:
        unknown = sorted(map(str, set(content) - known)) if isinstance(content, dict) else [type(content).__name__]
        raise InputError(
            f"--config must map option names to values, but {path} has {', '.join(unknown)}: known are "
            f"{', '.join(sorted(known))}"
        )
    return content
