"""The declaration of a command: its words in the help, its configuration, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `direct-anneal`.

    Attributes:
        name: after `direct-anneal`.
        help: one line, for the list of commands.
        description: for the command's own help.
        config: the class of its options, made with `config.option.configuration`; it must not import torch.
        run: gets the options that were given, by name; calls the library, prints, and returns what a job's log needs.
        unused: names that a file of options may have beside the command's own.
        takes_file: whether `--config` is an option.
    """

    name: str
    help: str
    description: str
    config: type
    run: Callable[[dict[str, Any]], dict[str, Any]]
    unused: frozenset[str] = frozenset()
    takes_file: bool = True


def quieten_transformers() -> None:
    """Keep its bars and remarks out of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
