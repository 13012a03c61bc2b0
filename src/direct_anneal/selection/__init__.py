"""The main job: from a checkpoint, a pool and a validation set to the chosen documents."""

from direct_anneal.config.select import SOLVING_FIELDS, SelectConfig
from direct_anneal.selection.choose import Run
from direct_anneal.selection.pipeline import Features, features, reselect, select, select_documents
from direct_anneal.selection.planning import Plan, plan
from direct_anneal.selection.selector import DirectSelector

__all__ = [
    "SOLVING_FIELDS",
    "DirectSelector",
    "Features",
    "Plan",
    "Run",
    "SelectConfig",
    "features",
    "plan",
    "reselect",
    "select",
    "select_documents",
]
