"""The annealing phase itself: a checkpoint, the chosen documents, a decaying rate.

anneal(model="ckpt", data="runs/a/selected.jsonl.zst", out="annealed", learning_rate=3e-3, epochs=2)

`training` needs accelerate, and is imported where it is used.
"""

from direct_anneal.config.anneal import AnnealConfig
from direct_anneal.train.packing import PackedWindows, Part
from direct_anneal.train.pipeline import anneal
from direct_anneal.train.schedules import SCHEDULES, ScheduleName

__all__ = ["SCHEDULES", "AnnealConfig", "PackedWindows", "Part", "ScheduleName", "anneal"]
