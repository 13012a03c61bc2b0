"""Distil a run into a scorer that needs no model, and score pools of any size with it.

distil(run="runs/a", out="scorer")
read_scorer("scorer").scores(["a text"])     # (1,) float32
"""

from direct_anneal.config.distil import DistilConfig
from direct_anneal.distill.scorer import Scorer, read_scorer, write_scorer

__all__ = ["DistilConfig", "Scorer", "read_scorer", "write_scorer"]
