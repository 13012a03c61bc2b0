"""`doctor`: whether direct-anneal can work here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, quieten_transformers
from direct_anneal.config.files import NoConfig


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
    verdict = f"broken: {', '.join(broken)}" if broken else "direct-anneal works here"
    console.print(verdict, highlight=False, soft_wrap=True)
    return {"command": "doctor", "healthy": not broken, "findings": [vars(finding) for finding in findings]}


DOCTOR = Command(
    name="doctor",
    help="check the installation: versions, devices, disk, a self-test",
    description="List what this installation has and lacks, and run a self-test of some seconds. The exit code is 1 if "
    "something is broken.",
    config=NoConfig,
    run=_doctor,
    takes_file=False,
)
