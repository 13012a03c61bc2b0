"""What a run shows to people: on the terminal, and as a page."""

from pathlib import Path

from direct_anneal.report.frontier import print_frontier
from direct_anneal.report.summary import print_summary

__all__ = ["print_frontier", "print_summary", "write_report"]


def write_report(run: str | Path) -> Path:
    """`report.page.write_report`, whose libraries are loaded when a page is written, and not before."""
    from direct_anneal.report import page

    return page.write_report(run)
