"""Checkpoints that distributed training wrote, as Hugging Face directories.

convert("outputs/checkpoint/step-1000", config="assets/hf/Llama-3.2-1B", out="ckpt")
"""

from direct_anneal.convert.pipeline import convert

__all__ = ["convert"]
