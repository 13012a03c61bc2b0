"""The page of all options, docs/options.md, made from their declarations.

python -m direct_anneal.cli.options_page > docs/options.md
"""

from __future__ import annotations

import textwrap

from direct_anneal.cli import COMMANDS
from direct_anneal.cli.command import Command
from direct_anneal.cli.flags import in_order
from direct_anneal.config.option import Declared, declared

_HEAD = """# Options

Generated from the declarations of the options (`python -m direct_anneal.cli.options_page`). Do not edit this page.

An option has one name everywhere: `num_samples` in Python and in a configuration file, `--num-samples` on the command
line. A flag overrides the file. The last column says what an option changes: *features* (and everything that is
computed from them), *choice* (`solve` can change it in seconds), *result*, or nothing but where, how fast or how a
command runs.
"""

_AFFECTS = {"features": "features", "solving": "choice", "result": "result", "nothing": ""}


def page() -> str:
    """Return the page, Markdown."""
    return "\n".join([_HEAD, *(_section(command) for command in COMMANDS if declared(command.config))])


def _section(command: Command) -> str:
    lines = [f"## {command.name}", "", textwrap.fill(command.description, 120, break_on_hyphens=False), ""]
    if (same := next(other for other in COMMANDS if other.config is command.config)) is not command:
        return "\n".join([*lines, f"The options are those of [{same.name}](#{same.name}).", ""])
    groups: dict[str, list[Declared]] = {}
    for each in in_order(command.config):
        groups.setdefault(each.meta.group, []).append(each)
    for group, options in groups.items():
        if group:
            lines += [f"**{group[0].upper()}{group[1:]}**", ""]
        lines += ["| option | what | default | changes |", "|---|---|---|---|"]
        lines += [_row(each) for each in options]
        lines.append("")
    return "\n".join(lines)


def _row(each: Declared) -> str:
    metavar = "" if each.meta.argument or isinstance(each.default, bool) else f" {each.metavar}"
    cells = [f"`{each.flag}{metavar}`", each.meta.help, each.default_text, _AFFECTS[each.meta.affects]]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
