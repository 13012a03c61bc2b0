"""Arms × seeds × scenarios: what a choice of documents is worth once a model has been annealed on it."""

from direct_anneal.comparison.recipe import Arm, Recipe, Scenario, read_recipe
from direct_anneal.comparison.running import compare
from direct_anneal.comparison.statistics import Row, table

__all__ = ["Arm", "Recipe", "Row", "Scenario", "compare", "read_recipe", "table"]
