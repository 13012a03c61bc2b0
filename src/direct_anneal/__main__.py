"""`python -m direct_anneal`."""

from direct_anneal.cli import entry_point

entry_point()
