"""Choices that options offer, and the constants that their defaults share with the code that uses them."""

from __future__ import annotations

from typing import Literal

Objective = Literal["energy", "descent", "matching"]
Unit = Literal["samples", "tokens"]
CurvatureName = Literal["empirical-fisher", "mc-fisher", "ggn", "hessian"]
ProjectionName = Literal["two-sided", "gaussian"]
Reduction = Literal["mean", "sum"]
DtypeName = Literal["float32", "bfloat16", "float16"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
ScheduleName = Literal["linear", "1-sqrt", "cosine", "constant"]
Engine = Literal["local", "ray"]
SpecialTokens = Literal["text", "keep", "drop"]

PAPER_SHARE = 0.945  # of the spectrum's energy; arXiv:2605.31175, Algorithm 1
SKETCH_SIZE = 2048  # R; arXiv:2605.31175, its experiments

_CORPORA = {"validation": "validation set", "retain": "retained text"}


def corpus_name(role: str) -> str:
    """Return the name of a corpus for people: "validation set" for the role "validation"."""
    return _CORPORA.get(role, role)
