"""The chosen documents in the formats of trainers.

export("runs/a", to="megatron", out="annealing-data", mixture_share=0.3)["snippet"]
"""

from direct_anneal.export.pipeline import export
from direct_anneal.export.registry import FORMATS

__all__ = ["FORMATS", "export"]
