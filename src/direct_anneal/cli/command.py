"""The declaration of a command: its words in the help, its configuration, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from direct_anneal.io.lock import MARK


@dataclass(frozen=True, kw_only=True)
class Writes:
    """Output of a command, for `--dry-run`.

    Attributes:
        files: names in the output directory, with * where they depend on the input. A dry run prints those that apply.
        option: the option that names the place.
        only_with: file → option, or property of the options, without which it is not written.
        is_file: the option names one file, not a directory.
        unset: the file where the option is left out, a template of `config`; None: then nothing is written.
        earlier: files by which an earlier result of this command is known in the directory; empty: the directory must
            be new or empty; None: the command adds its files to what is there.
        resumes: an earlier result is gone on with; otherwise it is refused unless it may be replaced.
    """

    files: tuple[str, ...] = ()
    only_with: Mapping[str, str] = field(default_factory=dict)
    option: str = "out"
    is_file: bool = False
    unset: str | None = None
    earlier: tuple[str, ...] | None = (MARK,)
    resumes: bool = True


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
        writes: the files that it makes; None: none, and there is no `--dry-run`.
    """

    name: str
    help: str
    description: str
    config: type
    run: Callable[[dict[str, Any]], dict[str, Any]]
    unused: frozenset[str] = frozenset()
    takes_file: bool = True
    writes: Writes | None = None

    @property
    def keeps(self) -> bool:
        """True if what an interrupted run has done is there for the next one to go on with."""
        writes = self.writes
        return writes is not None and writes.resumes and not writes.is_file and writes.earlier != ()


def quieten_transformers() -> None:
    """Keep its bars and remarks out of ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
