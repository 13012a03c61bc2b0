"""`report`: the page of a finished run, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from direct_anneal.cli.command import Command, Writes
from direct_anneal.config.files import ReportConfig


def _report(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.compare import report as of_comparison
    from direct_anneal.report import write_report

    run = Path(options["run"])
    page = of_comparison.write_report(run) if of_comparison.is_comparison(run) else write_report(run)
    print(page)
    return {"command": "report", "out": str(run), "files": [str(page)]}


REPORT = Command(
    name="report",
    help="write the report of a finished run again",
    description="Write report.html of a finished select, solve or compare again, from the files of the run. If the "
    "pool was named by a relative path, call it from the same directory as then.",
    config=ReportConfig,
    run=_report,
    writes=Writes(files=("report.html",), option="run", earlier=None),
    takes_file=False,
)
