"""`select`, `features` and `solve`: choosing documents, what it takes, and choosing again."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import add_config, add_data_fields, quieten_transformers, require
from direct_anneal.errors import InputError

if TYPE_CHECKING:
    from direct_anneal.selection import Run


def add_select(commands: Any) -> None:
    """The command and its options; those not given are left out, so that --config and `SelectConfig` can fill them."""
    select = commands.add_parser(
        "select",
        help="choose documents from a pool",
        description="Choose documents from a pool for a checkpoint at the onset of annealing.",
        argument_default=argparse.SUPPRESS,
    )
    select.set_defaults(command=_select)
    add_options(select)


def add_features(commands: Any) -> None:
    """The command and its options: those of `select` that features depend on."""
    features = commands.add_parser(
        "features",
        help="compute what select chooses by, and choose later",
        description="Compute and store the gradients of a pool and a validation set, as select does first. Then select "
        "with the same --out, or solve, uses them.",
        argument_default=argparse.SUPPRESS,
    )
    features.set_defaults(command=_features)
    add_options(features, solving=False)


def add_options(select: argparse.ArgumentParser, *, solving: bool = True) -> None:
    """What a selection is made from; and, where `solving`, how it is made."""
    add_config(select, unused=frozenset() if solving else _solving_names())
    data = select.add_argument_group("what goes in, and where it comes out")
    data.add_argument("--model", metavar="DIR", help="checkpoint directory, or hub name")
    data.add_argument("--pool", action="append", metavar="GLOB", help="candidate documents; may be given several times")
    data.add_argument(
        "--validation", nargs="+", action="extend", metavar="GLOB", help="documents of what the model should be good at"
    )
    data.add_argument("--out", metavar="DIR", help="the run's directory")
    add_data_fields(data)
    data.add_argument(
        "--prompt-field",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="field with what precedes the text and is not predicted (none), or several",
    )
    data.add_argument(
        "--token-dtype",
        choices=("uint16", "uint32"),
        help="of tokens in .npy, and in .ds without metadata (as the vocabulary needs)",
    )
    data.add_argument("--eos-id", type=int, metavar="ID", help="token that ends a document in .npy (the model's)")
    data.add_argument(
        "--overwrite", action="store_true", help="replace an earlier run in --out; fitting features are kept"
    )
    if solving:
        _add_size(select)
    method = select.add_argument_group("the method")
    if solving:
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
    if solving:
        _add_constraints(select)
    machine = select.add_argument_group("the machine")
    machine.add_argument("--device", help="cpu (default) or cuda")
    machine.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (float32)")
    machine.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (as memory allows)")
    _add_engine(machine, "how many models at once (one a GPU, or core), and tasks of the solver (one a core)")
    machine.add_argument(
        "--features",
        metavar="URL",
        help="write shards there, as s3://bucket/run, and fetch them below --out in the end",
    )
    machine.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    add_telling(select)


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
    solve.add_argument("run", metavar="RUN_DIR", help="what was --out of select or features")
    add_config(solve)
    solve.add_argument("--out", metavar="DIR", help="the new run's directory")
    solve.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    solve.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    _add_size(solve)
    _add_method(solve.add_argument_group("the method"))
    _add_constraints(solve)
    _add_engine(solve.add_argument_group("the machine"), "how many tasks at once (one a core)")
    add_telling(solve)


def _solving_names() -> frozenset[str]:
    """Of the options that only choosing depends on: a selection's file will do for `features`."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_size(parser)
    _add_method(parser.add_argument_group())
    _add_constraints(parser)
    return frozenset(action.dest for action in parser._actions)


def _add_engine(machine: argparse._ArgumentGroup, workers: str) -> None:
    machine.add_argument("--engine", choices=("local", "ray"), help="this process (local), or workers of a Ray cluster")
    machine.add_argument("--ray-address", metavar="A", help="of the cluster (RAY_ADDRESS, or else this machine)")
    machine.add_argument("--workers", type=int, metavar="W", help=f"for ray: {workers}")


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_argument_group("how much; one of these")
    size.add_argument("--num-samples", type=int, metavar="K", help="documents")
    size.add_argument("--num-tokens", type=int, metavar="B", help="tokens")
    size.add_argument("--fraction", type=float, metavar="F", help="share of the pool's documents")


def _add_method(method: argparse._ArgumentGroup) -> None:
    method.add_argument(
        "--objective",
        metavar="NAME",
        help="matching: what the validation set lacks, and no more of it (default); descent: as far downhill as can "
        "be; energy: the paper's; or one of a --plugin's",
    )
    method.add_argument(
        "--objective-options",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="options that a --plugin's objective alone knows",
    )
    method.add_argument(
        "--plugin",
        nargs="+",
        action="extend",
        metavar="MODULE",
        help="import this first: Python that registers objectives",
    )
    method.add_argument(
        "--beside",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="say what these objectives would have chosen, too",
    )
    method.add_argument(
        "--target-scale",
        type=float,
        metavar="C",
        help="of matching: 1 for a selection like the validation set, more to lean away from the pool (8)",
    )
    method.add_argument(
        "--filter",
        choices=("newton", "flat", "none"),
        help="what is gained in a direction: damped Newton, nothing if stiff (energy), or as it is",
    )
    method.add_argument(
        "--damping", type=float, metavar="D", help="of newton, in units of the largest curvature (0.01)"
    )
    method.add_argument(
        "--filter-curvature",
        choices=("validation", "pool", "both"),
        help="of newton: whose gradients' second moment (both)",
    )
    method.add_argument("--gradients", choices=("raw", "unit"), help="as they are (energy), or of length 1")
    method.add_argument(
        "--ngram-weight",
        type=float,
        metavar="B",
        help="of likeness by n-grams of tokens, beside that by gradients (1; 0 for gradients alone)",
    )
    method.add_argument("--noise", choices=("raw", "centred"), help="stiff cost of gradients (raw), or around the mean")
    method.add_argument(
        "--bands", type=int, metavar="M", help="stiff budgets, for parts of equal energy of the spectrum (1)"
    )
    method.add_argument(
        "--budget-ratio",
        type=_number_or("none"),
        metavar="X",
        help="stiff budget per selected document, in units of the reference's mean, or none (energy 1.0, else none; "
        "paper: 0.1)",
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
        type=_number_or("gap"),
        metavar="E",
        help="share of the curvature that is stiff (0.945), or gap, its widest",
    )
    method.add_argument("--num-stiff", type=int, metavar="S", help="stiff directions, instead of an elbow")
    method.add_argument(
        "--frontier",
        nargs="?",
        const="",
        metavar="X1,X2,...",
        help="trace objective and composition over these budget ratios, too (without any: over eight)",
    )


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


def _number_or(word: str) -> Callable[[str], float | str]:
    def number(text: str) -> float | str:  # argparse's messages name it
        return text if text == word else float(text)

    return number


def _select(options: dict[str, Any]) -> dict[str, Any]:
    require(options, "select", ("model", "pool", "validation", "out"))
    from direct_anneal.selection import select_documents

    read_ratios(options)
    quieten_transformers()
    return _shown("select", select_documents(progress=progress_of(options), **options))


def _features(options: dict[str, Any]) -> dict[str, Any]:
    require(options, "features", ("model", "pool", "validation", "out"))
    from direct_anneal.selection import features

    quieten_transformers()
    run = features(progress=progress_of(options), **options)
    for role, corpus in run.corpora.items():
        print(
            f"{role}: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens; "
            f"{corpus['quarantined']['count']:,} quarantined"
        )
    for remark in run.warnings:
        print(f"Note: {remark}")
    print(
        f"Features are in {run.out}/features. To choose by them: direct-anneal solve {run.out} --fraction F --out DIR"
    )
    return {"command": "features", "out": str(run.out), "corpora": run.corpora, "warnings": run.warnings}


def _solve(options: dict[str, Any]) -> dict[str, Any]:
    require(options, "solve", ("out",))
    from direct_anneal.selection import reselect

    read_ratios(options)
    quieten_transformers()
    return _shown("solve", reselect(options.pop("run"), progress=progress_of(options), **options))


def _shown(command: str, run: Run) -> dict[str, Any]:
    """Print the summary, and return what a job's log needs to know; manifest.json has all of it."""
    from rich.console import Console

    from direct_anneal.report import print_frontier, print_summary

    print_summary(run.manifest, run.out, Console())
    if "frontier" in run.manifest:
        print_frontier(run.manifest["frontier"], run.out, Console())
    budget, objective = run.manifest["budget"], run.manifest["objective"]
    return {
        "command": command,
        "out": str(run.out),
        "num_selected": run.manifest["num_selected"],
        "num_pool": run.manifest["corpora"]["pool"]["documents"],
        "objective": {name: objective[name] for name in ("name", "value", "bound")},
        "budget": {name: budget[name] for name in ("ratio", "limit", "used", "relaxed")},
        "status": run.manifest["status"],
        "files": run.manifest["files"],
        "warnings": run.manifest["warnings"],
        "seconds": run.manifest["timings"],
    }


def read_ratios(options: dict[str, Any]) -> None:
    """Make the ratios of a frontier, "0.1,0.5" or a list, numbers; an empty text stands for a grid of our own."""
    if "frontier" not in options:
        return
    given = options["frontier"]
    text = ",".join(map(str, given)) if isinstance(given, list) else str(given)
    try:
        ratios = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        ratios = (-1.0,)
    if not all(0 < ratio <= 1e6 for ratio in ratios):
        raise InputError(f"--frontier must be budget ratios above 0, separated by commas, got {text}")
    options["frontier"] = ratios
