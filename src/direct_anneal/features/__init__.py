"""Features on disk: the store's format, the extraction that fills it, and the way back to gradients."""

from direct_anneal.features.documents import Documents
from direct_anneal.features.extraction import Engine, Extraction, Local, batches_of, extract, shard_rows
from direct_anneal.features.load import OUTLIER_FACTOR, SketchedGradients
from direct_anneal.features.ngrams import NGRAM_SIZE, ngram_shard, ngram_store, ngrams_of
from direct_anneal.features.storage import UnreachableError, is_url, place_at
from direct_anneal.features.store import FeatureStore, ShardRows
from direct_anneal.features.verification import Finding, Header, verify

__all__ = [
    "NGRAM_SIZE",
    "OUTLIER_FACTOR",
    "Documents",
    "Engine",
    "Extraction",
    "FeatureStore",
    "Finding",
    "Header",
    "Local",
    "ShardRows",
    "SketchedGradients",
    "UnreachableError",
    "batches_of",
    "extract",
    "is_url",
    "ngram_shard",
    "ngram_store",
    "ngrams_of",
    "place_at",
    "shard_rows",
    "verify",
]
