"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from direct_anneal.cli.anneal import ANNEAL
from direct_anneal.cli.command import Command
from direct_anneal.cli.compare import COMPARE
from direct_anneal.cli.completion import add_print_completion
from direct_anneal.cli.console import Output, add_output_flags, progress_of
from direct_anneal.cli.convert import CONVERT
from direct_anneal.cli.demo import DEMO
from direct_anneal.cli.distil import DISTIL
from direct_anneal.cli.doctor import DOCTOR
from direct_anneal.cli.dry_run import dry_run
from direct_anneal.cli.evaluate import EVALUATE
from direct_anneal.cli.export import EXPORT
from direct_anneal.cli.flags import add_flags, from_file, speller, values
from direct_anneal.cli.init import INIT
from direct_anneal.cli.plan import PLAN
from direct_anneal.cli.report import REPORT
from direct_anneal.cli.score import MERGE, SCORE
from direct_anneal.cli.select import FEATURES, SELECT, SOLVE
from direct_anneal.cli.verify import VERIFY
from direct_anneal.cli.weights import WEIGHTS
from direct_anneal.config.option import declared, settled
from direct_anneal.errors import InputError, flag, suggestion
from direct_anneal.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED, exit_code, last_words
from direct_anneal.io.torchrun import is_first, is_launched
from direct_anneal.progress import showing

# In the order of the help.
COMMANDS = (
    *(SELECT, FEATURES, PLAN, SOLVE, VERIFY, REPORT, EXPORT, DISTIL, SCORE, MERGE, WEIGHTS, CONVERT, ANNEAL),
    *(EVALUATE, COMPARE, INIT, DOCTOR, DEMO),
)

EXIT_BUG, EXIT_INPUT = 1, 2

_LEFT_OUT: tuple[object, ...] = (None, "", (), [])  # values of a required option in a file that was not filled in

# Of an OSError, those that the user can mend; every other one is a bug until shown otherwise.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# In the words of safetensors, and of torch, whose archive ends short of where it was written to.
_SAYS_DISK_FULL = re.compile(
    rf"os error ({'|'.join(map(str, _DISK_FULL))})\b|inline_container\.cc.*unexpected pos \d+ vs \d+", re.DOTALL
)
_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a bug or a broken installation, 2 the user's input or request, 130 interrupted, 143 ended by SIGTERM.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    output, options, keeps = Output({}), dict[str, Any](), True
    spell: Callable[[str], str] = flag

    def kept() -> str:
        return "what was done is kept" if keeps else "nothing of it is kept"

    def to_go_on() -> str:
        return f"{kept()}; to {'go on' if keeps else 'begin again'}: {shlex.join(['direct-anneal', *words])}"

    def disk_is_full(reason: str) -> int:
        return output.failure(
            f"the disk must have room for {options.get('out', 'the run')}, but is full ({reason}): make some; "
            f"{to_go_on()}",
            EXIT_INPUT,
        )

    def interrupted(code: int) -> int:
        with last_words(code):
            return output.failure(
                f"{'ended by SIGTERM' if code == EXIT_TERMINATED else 'interrupted'}: {to_go_on()}", code
            )

    try:
        if is_launched() and not is_first():
            from direct_anneal.distributed.torchrun import serve

            serve()
            return 0
        command, given = _parsed(words)
        keeps = command.keeps
        output, progress = Output(given), progress_of(given)
        is_dry = given.pop("dry_run", False)
        options = values(command.config, given)
        spell = speller(command.config, frozenset())
        if "config" in given:
            in_file = from_file(given["config"], command.config, command.unused, command.name)
            spell = speller(command.config, frozenset(in_file) - options.keys())
            options = {**in_file, **options}
        settled(command.config, options)  # a mistyped value is told before a missing one
        _check_complete(command, options)
        if is_launched() and command not in (SELECT, FEATURES):
            raise InputError(f"torchrun can spread the model of select and features, but not of {command.name}")
        with output.streams(), showing(progress):
            _load_pandas()
            result = dry_run(command, options) if is_dry else command.run(options)
            sys.stdout.flush()
        if is_launched():
            from direct_anneal.distributed.torchrun import dismiss

            dismiss()
        output.result(result)
        return EXIT_BUG if result.get("healthy") is False else 0
    except InputError as error:
        return output.failure(error.spelled(spell), EXIT_INPUT)
    except KeyboardInterrupt as error:
        return interrupted(exit_code(error) or EXIT_INTERRUPTED)
    except BrokenPipeError:  # as of `verify RUN | head`: nobody listens any more
        _hang_up()
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno in _DISK_FULL:
            return disk_is_full(str(error.strerror))
        if error.errno in _NOT_ALLOWED:
            return output.failure(
                f"files must be readable and --out writable, but {error.filename or 'a file'}: {error.strerror}: "
                "change its permissions or choose another",
                EXIT_INPUT,
            )
        if error.errno in _NO_FILE and error.filename:
            return output.failure(
                f"files must be files, and in directories, but {error.filename}: {error.strerror}: choose another",
                EXIT_INPUT,
            )
        return _bug(output, kept())
    except Exception as error:  # the boundary: whatever it is, people are told that it is not their fault
        if (code := exit_code(error)) is not None:
            return interrupted(code)
        if found := _SAYS_DISK_FULL.search(str(error)):
            return disk_is_full(found[0])
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            return output.failure(
                "model and batch must fit into memory, but did not: pass a smaller --batch-tokens or --max-length, or "
                f"--dtype bfloat16, and run the command again; {kept()}",
                EXIT_INPUT,
            )
        return _bug(output, kept())


def _load_pandas() -> None:
    """Import pandas where it is installed: pyarrow would, at its first table, in C++ that drops a Ctrl-C."""
    with suppress(ImportError):
        import_module("pandas")


def _hang_up() -> None:
    """Let what is still to be written go nowhere, so that the interpreter does not complain of it at its end."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _bug(output: Output, kept: str) -> int:
    output.trace()
    return output.failure(
        f"this is a bug in {_version()}: please report it with the lines above and the command; {kept}",
        EXIT_BUG,
    )


def _version() -> str:
    from importlib.metadata import version  # takes as long to load as all options

    return f"direct-anneal {version('direct-anneal')}"


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **given)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_version())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are a line like all others; the usage of a command would fill the screen before it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}: see {self.prog} --help")


def _parsed(words: list[str]) -> tuple[Command, dict[str, Any]]:
    """Return the command, and what was given by the names of its options.

    Raises:
        InputError: there is no such command or flag; names the nearest.
    """
    known = {command.name: command for command in COMMANDS}
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in known and words[0] == first:
        told = suggestion(first, known) or f"there are {', '.join(known)}"
        raise InputError(f"there is no command {first}: {told} (direct-anneal --help)")
    namespace, unknown = build_parser().parse_known_args(words)
    given = vars(namespace)
    command = known[given.pop("_command")]
    if unknown:
        raise InputError(f"{_unknown(command, unknown)} (direct-anneal {command.name} --help)")
    return command, given


def _unknown(command: Command, unknown: list[str]) -> str:
    """Return a line for the first word that the command does not know."""
    word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
    if not word.startswith("-"):
        return f"{command.name} does not take {word!r}"
    flags = {each.flag for each in declared(command.config).values()} | {"--quiet", "--log-format", "--dry-run"}
    others = [other.name for other in COMMANDS if word in {each.flag for each in declared(other.config).values()}]
    told = f"{', '.join(others)} {'have' if len(others) > 1 else 'has'} it" if others else suggestion(word, flags)
    return f"{command.name} has no option {word}" + (f": {told}" if told else "")


def _check_complete(command: Command, options: dict[str, Any]) -> None:
    required = [each for each in declared(command.config).values() if each.required]
    missing = [each.flag for each in required if options.get(each.name) in _LEFT_OUT]  # a 0 was given
    if missing:
        raise InputError(f"{command.name} needs {', '.join(missing)}: see direct-anneal {command.name} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, each with the flags of its configuration."""
    parser = _Parser(
        prog="direct-anneal",
        description="Choose the documents that a language model is trained on in its annealing phase, while the "
        "learning rate decays.",
        epilog="In order: doctor checks the installation, demo shows an example, plan estimates, select chooses, "
        "compare measures on small runs whether the choice pays, and export writes it for a trainer. "
        "`direct-anneal COMMAND --help` has the options of a command.",
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    add_print_completion(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        its = commands.add_parser(command.name, help=command.help, description=command.description)
        its.set_defaults(_command=command.name)
        if command.takes_file:
            its.add_argument(
                "--config",
                default=argparse.SUPPRESS,
                metavar="FILE",
                help="YAML or JSON of these options, such as options.json of an earlier run; flags override it",
            )
        add_flags(its, command.config)
        add_output_flags(its, writes=command.writes is not None)
    return parser
