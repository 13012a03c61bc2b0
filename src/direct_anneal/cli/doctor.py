"""`doctor`: whether direct-anneal can work here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.console import add_telling
from direct_anneal.cli.shared import quieten_transformers


def add_doctor(commands: Any) -> None:
    """The command; it has no options of its own."""
    parser = commands.add_parser(
        "doctor",
        help="check the installation: versions, devices, disk, a self-test",
        description="Say what this installation has and lacks, and test in seconds whether it computes what it should. "
        "The exit code is 1 where it does not.",
    )
    parser.set_defaults(command=_doctor)
    add_telling(parser)


def _doctor(_: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console
    from rich.markup import escape

    from direct_anneal.doctor import examine

    quieten_transformers()
    console, findings = Console(), []
    for finding in examine(Path.cwd()):
        mark = "[green]ok[/]     " if finding.ok else "[red]broken[/] " if finding.needed else "[yellow]lacking[/]"
        console.print(f"{mark} {escape(f'{finding.name:<26} {finding.value}')}", highlight=False, soft_wrap=True)
        findings.append(finding)
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    verdict = f"broken: {', '.join(broken)}" if broken else "direct-anneal can work here"
    console.print(verdict, highlight=False, soft_wrap=True)
    return {"command": "doctor", "healthy": not broken, "findings": [vars(finding) for finding in findings]}
