"""What a run shows to people."""

from direct_anneal.report.frontier import print_frontier
from direct_anneal.report.summary import print_summary

__all__ = ["print_frontier", "print_summary"]
