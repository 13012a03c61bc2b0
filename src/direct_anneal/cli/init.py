"""`init`: a file of options to fill in."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes
from direct_anneal.cli.flags import in_order
from direct_anneal.config.files import InitConfig
from direct_anneal.config.option import Declared
from direct_anneal.config.options import require_new_file
from direct_anneal.io.atomic import replacing

_WIDTH = 100


def _init(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.cli import COMMANDS

    config = InitConfig(**options)
    command = next(each for each in COMMANDS if each.name == config.command)
    out = Path(config.out or f"{command.name}.yaml")
    require_new_file(out, overwrite=config.overwrite)
    with replacing(out) as temporary:
        temporary.write_text(template(command), encoding="utf-8")
    print(f"{out} is written. Fill in the lines without #, then: direct-anneal {command.name} --config {out}")
    return {"command": "init", "out": str(out)}


def template(command: Command) -> str:
    """Return a file of all options of a command: the required ones to fill in, the others with their defaults, as
    comments.
    """
    lines = [f"# Options of direct-anneal {command.name}. Flags override this file. Remove a # to set an option."]
    group = None
    for each in sorted(in_order(command.config), key=lambda each: not each.required):
        if each.meta.argument or each.meta.python_only:
            continue
        if not each.required and each.meta.group != group:
            group = each.meta.group
            lines += ["", f"# ---- {group} ----"]
        lines += ["", *_commented(each)]
    return "\n".join([*lines, ""])


def _commented(each: Declared) -> list[str]:
    choices = f" One of {', '.join(each.choices)}." if each.choices else ""
    told = f"{each.meta.help}.{choices}" + ("" if each.required else f" Default: {each.default_text}.")
    lines = textwrap.wrap(told[0].upper() + told[1:], _WIDTH, initial_indent="# ", subsequent_indent="# ")
    if each.required:
        return [*lines, f"{each.name}: FILL-IN"]
    default = {True: "true", False: "false"}.get(each.default) if isinstance(each.default, bool) else each.default
    return [*lines, f"#{each.name}:" + ("" if default in (None, (), {}) else f" {_yaml(default)}")]


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


INIT = Command(
    name="init",
    help="write a commented configuration file to fill in",
    description="Write a YAML file with every option of a command, an explanation and the default, for --config.",
    config=InitConfig,
    run=_init,
    writes=Writes(is_file=True, unset="{config.command}.yaml"),
    takes_file=False,
)
