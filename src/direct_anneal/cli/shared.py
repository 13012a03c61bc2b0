"""What several commands do alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from direct_anneal.errors import InputError


def add_data_fields(group: Any) -> None:
    """Where a record's text, id and domain are."""
    for flag, text in (
        ("--text-field", "field with the text (text), or several: the first that a record has"),
        ("--id-field", "field with the id (id), or several; file:row where there is none"),
        ("--domain-field", "field with the domain (domain), or several; the file's name where there is none"),
    ):
        group.add_argument(flag, nargs="+", action="extend", metavar="NAME", help=text)


def add_config(parser: argparse.ArgumentParser, unused: frozenset[str] = frozenset()) -> None:
    """Options from a file. For commands that leave out what was not given, since flags go before the file.

    Args:
        unused: names that the file may have, and that mean nothing to this command.
    """
    assert parser.argument_default is argparse.SUPPRESS
    parser.add_argument(
        "--config",
        action=_FromFile,
        const=unused,
        metavar="FILE",
        help="YAML or JSON of these options, such as options.json of an earlier run; flags go before it",
    )


class _FromFile(argparse.Action):
    """Reads the file, whose names are those of the parser's flags as they are kept: `num_samples`, `floors`."""

    def __call__(self, parser: Any, namespace: Any, path: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        import yaml

        known = {action.dest for action in parser._actions if action.option_strings} - {"help", "config"}
        known = (known | self.const) - {"quiet", "log_format"}  # these are of how it is told, not of what is done
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(
                f"--config must be a YAML file of options, but {path}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(content, dict) or not set(content) <= known:
            unknown = sorted(map(str, set(content) - known)) if isinstance(content, dict) else [type(content).__name__]
            raise InputError(
                f"--config must map option names to values, but {path} has {', '.join(unknown)}: known are "
                f"{', '.join(sorted(known))}"
            )
        namespace.config = {name: value for name, value in content.items() if name not in self.const}


def require(options: dict[str, Any], command: str, names: tuple[str, ...]) -> None:
    """See that what a command cannot do without was given.

    Raises:
        InputError: it was not.
    """
    missing = ["--" + name.replace("_", "-") for name in names if not options.get(name)]
    if missing:
        raise InputError(f"{command} needs {', '.join(missing)}: see direct-anneal {command} --help")


def quieten_transformers() -> None:
    """Its bars and remarks would run into ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
