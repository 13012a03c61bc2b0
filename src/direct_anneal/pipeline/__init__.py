"""The main job: from a checkpoint, a pool and a validation set to the chosen documents."""

from direct_anneal.pipeline.choosing import Run
from direct_anneal.pipeline.config import SOLVING_FIELDS, SelectConfig
from direct_anneal.pipeline.selecting import reselect, select
from direct_anneal.pipeline.selector import DirectSelector

__all__ = ["SOLVING_FIELDS", "DirectSelector", "Run", "SelectConfig", "reselect", "select"]
