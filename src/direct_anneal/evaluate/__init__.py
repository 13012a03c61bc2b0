"""Evaluation of a model: bits per byte by domain, and benchmarks from local files."""

from direct_anneal.config.evaluate import EvaluateConfig
from direct_anneal.evaluate.benchmarks import BENCHMARKS, BenchmarkScore, score_benchmark
from direct_anneal.evaluate.bits_per_byte import DomainScore, bits_per_byte, macro_mean
from direct_anneal.evaluate.pipeline import evaluate, read_held_out

__all__ = [
    "BENCHMARKS",
    "BenchmarkScore",
    "DomainScore",
    "EvaluateConfig",
    "bits_per_byte",
    "evaluate",
    "macro_mean",
    "read_held_out",
    "score_benchmark",
]
