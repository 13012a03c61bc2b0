"""Per-sample gradients of a model, sketched to R numbers each."""

from direct_anneal.gradients.batches import Collate, LossFunction
from direct_anneal.gradients.coverage import EXCLUDED, SLOW, Coverage
from direct_anneal.gradients.fsdp import spread
from direct_anneal.gradients.preconditioning import (
    adam_moments,
    adam_scales,
    check_moments,
    optimizer_fingerprint,
    trainer_groups,
)
from direct_anneal.gradients.sketcher import (
    FACTOR_SIZE,
    SKETCH_VERSION,
    GradientSketcher,
    ProjectionName,
    Reduction,
    Sketches,
    SlowPathWarning,
)
from direct_anneal.model.batching import IGNORED_LABEL

__all__ = [
    "EXCLUDED",
    "FACTOR_SIZE",
    "IGNORED_LABEL",
    "SKETCH_VERSION",
    "SLOW",
    "Collate",
    "Coverage",
    "GradientSketcher",
    "LossFunction",
    "ProjectionName",
    "Reduction",
    "Sketches",
    "SlowPathWarning",
    "adam_moments",
    "adam_scales",
    "check_moments",
    "optimizer_fingerprint",
    "spread",
    "trainer_groups",
]
