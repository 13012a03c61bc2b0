"""The main job: from a checkpoint, a pool and a validation set to the chosen documents."""

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.config.select import SOLVING_FIELDS, SelectConfig, SolveConfig
from direct_anneal.selection.features_pipeline import compute_features, features, merge_features
from direct_anneal.selection.in_memory import select_samples
from direct_anneal.selection.losses import walk_of
from direct_anneal.selection.pipeline import reselect, select, select_again, select_documents
from direct_anneal.selection.planning import Plan, plan
from direct_anneal.selection.result import Features, Run
from direct_anneal.selection.selector import DirectSelector

__all__ = [
    "SOLVING_FIELDS",
    "DirectSelector",
    "Features",
    "FeaturesConfig",
    "Plan",
    "Run",
    "SelectConfig",
    "SolveConfig",
    "compute_features",
    "features",
    "merge_features",
    "plan",
    "reselect",
    "select",
    "select_again",
    "select_documents",
    "select_samples",
    "walk_of",
]
