"""The demo: a small causal language model and a corpus, without network or user data."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from direct_anneal.demo.documents import DAMAGED, TARGET, DemoCorpus, write_demo_corpus

__all__ = ["DAMAGED", "TARGET", "DemoCorpus", "demo_model_path", "write_demo_corpus"]


def demo_model_path() -> Path:
    """Return the directory of the shipped model; `recipes/train_demo_model.py` made it."""
    return Path(str(files("direct_anneal.demo"))) / "model"
