"""Features on disk: the store's format, the extraction that fills it, and the way back to gradients."""

from direct_anneal.features.checking import Finding, verify
from direct_anneal.features.extraction import extract
from direct_anneal.features.loading import OUTLIER_FACTOR, SketchedGradients
from direct_anneal.features.store import FeatureStore, ShardRows

__all__ = ["OUTLIER_FACTOR", "FeatureStore", "Finding", "ShardRows", "SketchedGradients", "extract", "verify"]
