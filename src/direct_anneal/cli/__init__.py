"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from direct_anneal.cli.annealing import add_anneal
from direct_anneal.cli.comparison import add_compare
from direct_anneal.cli.evaluation import add_evaluate
from direct_anneal.cli.shared import add_data_fields, quieten_transformers, require
from direct_anneal.errors import InputError

EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130

# Of an OSError, those that the user can mend; every other one is a bug until shown otherwise.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def entry_point() -> None:
    """The script `direct-anneal`."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a bug, 2 the user's input or request, 130 interrupted.
    """
    options = vars(_parser().parse_args(arguments))
    command: Callable[[dict[str, Any]], None] = options.pop("command")
    try:
        command(options)
    except InputError as error:
        return _fail(str(error), EXIT_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted: what was done is kept, run the same command again to go on", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno in _DISK_FULL:
            return _fail(
                f"the disk must have room for the run, but is full ({error.strerror}): free some, and run the same "
                "command again to go on; what was done is kept",
                EXIT_INPUT,
            )
        if error.errno in _NOT_ALLOWED:
            return _fail(
                f"files must be readable and --out writable, but {error.filename or 'a file'}: {error.strerror}: "
                "change its permissions or choose another",
                EXIT_INPUT,
            )
        return _bug()
    except Exception as error:  # the boundary: whatever it is, people are told that it is not their fault
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            return _fail(
                "model and batch must fit into memory, but did not: pass a smaller --batch-tokens or --max-length, or "
                "--dtype bfloat16, and run the command again to go on; what was done is kept",
                EXIT_INPUT,
            )
        return _bug()
    return 0


def _fail(message: str, code: int) -> int:
    print(f"direct-anneal: {message}", file=sys.stderr)
    return code


def _bug() -> int:
    traceback.print_exc()
    return _fail(
        f"this is a bug in direct-anneal {version('direct-anneal')}: please report it with the lines above and the "
        "command; what was done is kept",
        EXIT_BUG,
    )


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


def _demo(options: dict[str, Any]) -> None:
    from rich.console import Console

    from direct_anneal.demo.story import run_demo
    from direct_anneal.progress import for_stream

    quieten_transformers()
    run_demo(Path(options["out"]), progress=for_stream(sys.stderr), console=Console())


def _elbow(text: str) -> float | str:
    return text if text == "gap" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="direct-anneal",
        description="Choose the data of the annealing phase: progress in flat directions, a budget in stiff ones.",
    )
    parser.add_argument("--version", action="version", version=f"direct-anneal {version('direct-anneal')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    # Flags that are not given are left out, so that --config can fill them and SelectConfig's defaults hold.
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
    size = select.add_argument_group("how much; one of these")
    size.add_argument("--num-samples", type=int, metavar="K", help="documents")
    size.add_argument("--num-tokens", type=int, metavar="B", help="tokens")
    size.add_argument("--fraction", type=float, metavar="F", help="share of the pool's documents")
    method = select.add_argument_group("the method")
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
    machine = select.add_argument_group("the machine")
    machine.add_argument("--device", help="cpu (default) or cuda")
    machine.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the model (float32)")
    machine.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (as memory allows)")
    machine.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")

    add_anneal(commands)
    add_evaluate(commands)
    add_compare(commands)

    demo = commands.add_parser(
        "demo",
        help="see it work, without data of your own",
        description="Run the main job on a small model and a pool that come with the package.",
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="the run's directory (runs/demo)")
    return parser
