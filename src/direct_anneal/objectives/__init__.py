"""Objectives, a module each: from what is known of documents to a selection problem, and its solution."""

from direct_anneal.config.objective import register
from direct_anneal.objectives.base import SelectionObjective
from direct_anneal.objectives.inputs import Built, Gradients, Inputs

__all__ = ["Built", "Gradients", "Inputs", "SelectionObjective", "register"]
