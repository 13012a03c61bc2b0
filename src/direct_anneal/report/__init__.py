"""What a run shows to people."""

from direct_anneal.report.summary import print_summary

__all__ = ["print_summary"]
