"""`--print-completion`: what the shell needs to complete commands, options and files."""

from __future__ import annotations

import argparse
from typing import Any

from direct_anneal.errors import InputError

# Metavars of options that are files or directories.
_FILES = {"DIR", "RUN_DIR", "DCP_DIR", "GLOB", "FILE", "RECIPE", "PATH"}


def add_print_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option; the script is made of the parser itself."""
    parser.add_argument(
        "--print-completion",
        action=_Print,
        default=argparse.SUPPRESS,
        choices=("bash", "zsh", "tcsh"),
        help='print a completion script, as for eval "$(direct-anneal --print-completion bash)"',
    )


class _Print(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, shell: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        try:
            import shtab
        except ImportError as error:
            raise InputError(
                "completion needs shtab, which is not installed: pip install 'direct-anneal[completion]'"
            ) from error
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        for command in commands.choices.values():
            for action in command._actions:
                if action.metavar in _FILES:
                    action.complete = shtab.FILE
                elif isinstance(action.metavar, str) and action.metavar.startswith("{"):
                    action.choices = action.metavar.strip("{}").split(",")
        print(shtab.complete(parser, shell))
        parser.exit()
