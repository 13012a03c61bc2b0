"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from direct_anneal.cli.anneal import add_anneal
from direct_anneal.cli.compare import add_compare
from direct_anneal.cli.completion import add_print_completion
from direct_anneal.cli.console import Telling, add_telling, progress_of
from direct_anneal.cli.convert import add_convert
from direct_anneal.cli.distil import add_distil
from direct_anneal.cli.doctor import add_doctor
from direct_anneal.cli.evaluate import add_evaluate
from direct_anneal.cli.export import add_export
from direct_anneal.cli.plan import add_plan
from direct_anneal.cli.report import add_report
from direct_anneal.cli.select import add_features, add_select, add_solve
from direct_anneal.cli.shared import quieten_transformers
from direct_anneal.cli.verify import add_verify
from direct_anneal.errors import InputError, flag

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
        0 done, 1 a bug or a broken installation, 2 the user's input or request, 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    to_go_on = f"what was done is kept; to go on: {shlex.join(['direct-anneal', *words])}"
    telling, options = Telling({}), dict[str, Any]()
    try:
        given = vars(_parser().parse_args(words))
        options = {**given.pop("config", {}), **given}
        telling = Telling(options)
        command: Callable[[dict[str, Any]], dict[str, Any]] = options.pop("command")
        with telling.streams():
            result = command(options)
        telling.result(result)
        return EXIT_BUG if result.get("healthy") is False else 0
    except InputError as error:
        return telling.failure(error.spelled(flag), EXIT_INPUT)
    except KeyboardInterrupt:
        return telling.failure(f"interrupted: {to_go_on}", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno in _DISK_FULL:
            return telling.failure(
                f"the disk must have room for {options.get('out', 'the run')}, but is full ({error.strerror}): make "
                f"some; {to_go_on}",
                EXIT_INPUT,
            )
        if error.errno in _NOT_ALLOWED:
            return telling.failure(
                f"files must be readable and --out writable, but {error.filename or 'a file'}: {error.strerror}: "
                "change its permissions or choose another",
                EXIT_INPUT,
            )
        return _bug(telling)
    except Exception as error:  # the boundary: whatever it is, people are told that it is not their fault
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            return telling.failure(
                "model and batch must fit into memory, but did not: pass a smaller --batch-tokens or --max-length, or "
                "--dtype bfloat16, and run the command again to go on; what was done is kept",
                EXIT_INPUT,
            )
        return _bug(telling)


def _bug(telling: Telling) -> int:
    telling.trace()
    return telling.failure(
        f"this is a bug in direct-anneal {version('direct-anneal')}: please report it with the lines above and the "
        "command; what was done is kept",
        EXIT_BUG,
    )


def _demo(options: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from direct_anneal.demo.walkthrough import run_demo

    quieten_transformers()
    run_demo(Path(options["out"]), progress=progress_of(options), console=Console())
    return {"command": "demo", "out": options["out"]}


class _Parser(argparse.ArgumentParser):
    """Its errors are a line like all others; the usage of a command would fill the screen before it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="direct-anneal",
        description="Choose the data of the annealing phase: progress in flat directions, a budget in stiff ones.",
    )
    parser.add_argument("--version", action="version", version=f"direct-anneal {version('direct-anneal')}")
    add_print_completion(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_select(commands)
    add_features(commands)
    add_plan(commands)
    add_solve(commands)
    add_verify(commands)
    add_report(commands)
    add_export(commands)
    add_distil(commands)
    add_convert(commands)
    add_anneal(commands)
    add_evaluate(commands)
    add_compare(commands)
    add_doctor(commands)

    demo = commands.add_parser(
        "demo",
        help="see it work, without data of your own",
        description="Run the main job on a small model and a pool that come with the package.",
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="the run's directory (runs/demo)")
    add_telling(demo)
    return parser
