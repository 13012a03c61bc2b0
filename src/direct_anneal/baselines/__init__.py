"""Baselines for choosing data: each a score of every document, the highest are taken.

scores = BASELINES["dsir"].score(candidates, seed)        # (N,) float64, NaN: never
chosen = take(scores, candidates, num_tokens=1_000_000)   # (N,) bool
"""

from direct_anneal.baselines.candidates import Candidates, take
from direct_anneal.baselines.duplicates import DuplicateMethod, duplicates
from direct_anneal.baselines.registry import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline", "Candidates", "DuplicateMethod", "duplicates", "take"]
