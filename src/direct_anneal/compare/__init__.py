"""Arms × seeds × scenarios: what a choice of documents is worth once a model has been annealed on it."""

from direct_anneal.compare.config import Arm, Recipe, Scenario, read_recipe
from direct_anneal.compare.pipeline import compare
from direct_anneal.compare.statistics import Row, table

__all__ = ["Arm", "Recipe", "Row", "Scenario", "compare", "read_recipe", "table"]
