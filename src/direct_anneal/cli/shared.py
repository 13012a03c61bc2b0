"""What several commands do alike."""

from __future__ import annotations

from typing import Any

from direct_anneal.errors import InputError


def add_data_fields(group: Any) -> None:
    """Where a record's text, id and domain are."""
    group.add_argument("--text-field", metavar="NAME", help="field with the text (text)")
    group.add_argument("--id-field", metavar="NAME", help="field with the id (id); file:row where there is none")
    group.add_argument(
        "--domain-field", metavar="NAME", help="field with the domain (domain); the file's name where there is none"
    )


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
