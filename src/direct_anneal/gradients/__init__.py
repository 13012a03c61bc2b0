"""Per-sample gradients of a causal language model, sketched to R numbers each."""

from direct_anneal.gradients.sketcher import (
    FACTOR_SIZE,
    SKETCH_VERSION,
    GradientSketcher,
    ProjectionName,
    Sketches,
    SlowPathWarning,
)

__all__ = ["FACTOR_SIZE", "SKETCH_VERSION", "GradientSketcher", "ProjectionName", "Sketches", "SlowPathWarning"]
