"""Reports of a run: a summary on the terminal and an HTML page."""

import warnings
from collections.abc import Callable
from pathlib import Path

from direct_anneal.report.frontier import print_frontier
from direct_anneal.report.summary import print_summary

__all__ = ["print_frontier", "print_summary", "try_report", "write_report"]


def write_report(run: str | Path) -> Path:
    """Call `report.page.write_report`, whose libraries are loaded when a page is written, and not before."""
    from direct_anneal.report import page

    return page.write_report(run)


def try_report(directory: Path, write: Callable[[Path], object] = write_report) -> None:
    """Write the report of what is finished: whatever goes wrong with it is a warning, and no reason to fail the run."""
    try:
        write(directory)
    except Exception as error:
        warnings.warn(
            f"report.html was not written ({type(error).__name__}: {error}). All else is there; "
            f"direct-anneal report {directory} tries again",
            RuntimeWarning,
            stacklevel=3,
        )
