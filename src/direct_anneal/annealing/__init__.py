"""The annealing phase itself: a checkpoint, the chosen documents, a decaying rate.

anneal(model="ckpt", data="runs/a/selected.jsonl.zst", out="annealed", learning_rate=3e-3, epochs=2)

`training` needs accelerate, and is imported where it is used.
"""

from direct_anneal.annealing.config import AnnealConfig
from direct_anneal.annealing.packing import PackedWindows, Part
from direct_anneal.annealing.running import anneal
from direct_anneal.annealing.schedules import SCHEDULES, ScheduleName

__all__ = ["SCHEDULES", "AnnealConfig", "PackedWindows", "Part", "ScheduleName", "anneal"]
