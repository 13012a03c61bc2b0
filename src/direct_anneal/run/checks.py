"""Warnings about a run, each with what to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import Spectrum
from direct_anneal.data import MAX_PLACES, Corpus
from direct_anneal.features import OUTLIER_FACTOR, SketchedGradients
from direct_anneal.gradients import EXCLUDED
from direct_anneal.io.redaction import redacted
from direct_anneal.objectives.within import RELAXED_MARGIN
from direct_anneal.run.sources import Tokenisation
from direct_anneal.solver import FeatureMatrix, Selection, SelectionProblem

ISSUES = {
    "bad-line": "lines left out: not JSON objects",
    "no-text": "documents left out: neither text nor input_ids",
    "empty-text": "documents left out: empty text",
    "too-short": "documents left out: fewer than two tokens, so nothing to predict",
    "bad-prompt": "documents left out: prompt and text are not both strings or both tokens",
    "nothing-to-predict": "documents left out: nothing to predict after the prompt",
    "no-prompt": "documents have no prompt, so all of their text is predicted",
    "bad-tokens": "documents left out: input_ids outside the model's vocabulary",
    "truncated": "files are cut off, and are used up to there",
    "special-dropped": "documents left out: special tokens in their text",
    "special-tokens": "documents have special tokens in their text (--special-tokens says how these are read)",
    "odd-id": "documents are called file:row, because their id is neither a string nor an integer",
    "duplicate-id": "documents were given another id, because theirs was taken",
    "over-long": "documents are longer than the window and are split into windows",
}

QUARANTINE = {
    "nan": "NaN",
    "infinite": "infinite",
    "nothing predicted": "without a token that is predicted",
    "outlier": f"above {OUTLIER_FACTOR:g} times the median norm",
}

PLACES = f"the first {MAX_PLACES} in manifest.json, all in corpus/{{}}/incidents.jsonl"

FEW_VALIDATION = 100
UNFILLED = 0.95
MAX_SOURCES = 5
HARDLY_MORE = 1.25  # times the selection, that the pool holds


def of_chooser(config: SelectConfig, tokens: Tokenisation) -> list[str]:
    """Note that another model chose, and whose tokens are counted."""
    if config.chooser is None:
        return []
    whose = ". Their tokenizers differ: sizes in tokens are the chooser's" if tokens.is_foreign else ""
    return [f"{redacted(config.chooser)} chose for {redacted(config.model)}{whose}"]


def of_coverage(coverage: dict[str, Any] | None) -> list[str]:
    """Note parts of the gradient that were left out."""
    excluded = [way for way in coverage["ways"] if way["way"] == EXCLUDED] if coverage is not None else []
    return [
        f"{way['num_parameters']:,} parameters are left out of the gradients: {way['share']:.1%} of all entries, "
        f"{way['squared_norm']:.1%} of the squared gradient norm where that was looked at"
        for way in excluded
        if way["squared_norm"] is not None
    ]


def of_validation(count: int) -> list[str]:
    """Warn where the validation set has few documents."""
    if count >= FEW_VALIDATION:
        return []
    return [f"only {count} validation documents, so target and curvature are rough estimates. Use several hundred"]


def of_spectrum(spectrum: Spectrum, *, known_in_part: bool) -> list[str]:
    """Warn where the split into stiff and flat is unreliable.

    Args:
        known_in_part: only some leading eigenpairs were sought.
    """
    rank = len(spectrum.eigenvalues)
    if spectrum.num_stiff <= rank / 2:
        return []
    return [
        f"{spectrum.num_stiff} of {rank} directions count as stiff, which leaves few flat ones. "
        f"{'Raise --num-eigenpairs' if known_in_part else 'Add validation documents'}, or lower --elbow"
    ]


def of_corpus(corpus: Corpus, gradients: SketchedGradients, role: str) -> list[str]:
    """List the documents left out of a corpus, or kept with a remark."""
    warnings = []
    if len(gradients.quarantined):
        counts = Counter(gradients.quarantined["reason"].to_pylist())
        reasons = ", ".join(f"{counts[reason]:,} {told}" for reason, told in QUARANTINE.items() if counts[reason])
        warnings.append(
            f"{role}: {len(gradients.quarantined):,} documents left out, because their gradients are unusable: "
            f"{reasons} (the first {MAX_PLACES} in manifest.json, all in features/{role}/quarantined.jsonl)"
        )
    for kind, entry in corpus.issues.to_manifest().items():
        if (role, kind, entry["count"]) == ("pool", "no-prompt", corpus.num_samples):
            continue  # a pool of plain text is what prompts are used with
        warnings.append(f"{role}: {entry['count']:,} {ISSUES[kind]} ({PLACES.format(role)})")
    empty = [str(source) for source, size in zip(corpus.sources, np.diff(corpus.bounds), strict=True) if not size]
    if empty:
        more = f" and {len(empty) - MAX_SOURCES:,} more" if len(empty) > MAX_SOURCES else ""
        warnings.append(
            f"{role}: no document of {', '.join(empty[:MAX_SOURCES])}{more} can be used. If the text is in "
            "another field, name it, too: --text-field text content"
        )
    return warnings


def of_selection(selection: Selection, pool: SketchedGradients, config: SelectConfig, least: float | None) -> list[str]:
    """Warn where the selection is not what was asked for: a relaxed budget, tokens that were not filled."""
    warnings = []
    if least is not None:
        asked = getattr(config.chosen_objective, "budget_ratio", None)
        warnings.append(
            f"the budget was relaxed. A ratio of {asked} is infeasible at this size; the least feasible one is "
            f"{least:.4g}, and {RELAXED_MARGIN:g} times that was used"
        )
    if config.num_tokens is not None:
        held = int(pool.samples["num_tokens"].to_numpy()[selection.indices].sum())
        if held < UNFILLED * config.num_tokens:
            warnings.append(
                f"the selection holds {held:,} of the {config.num_tokens:,} tokens asked for. No other "
                "document fits under the constraints"
            )
    return warnings


def of_size(selection: Selection, samples: pa.Table) -> list[str]:
    """Warn where the selection is most of the pool."""
    tokens = samples["num_tokens"].to_numpy()
    held, whole = int(tokens[selection.indices].sum()), int(tokens.sum())
    warnings = []
    if whole < HARDLY_MORE * held:
        warnings.append(
            f"the selection is {held / whole:.0%} of the pool's tokens, so there was hardly anything to choose "
            "from. Choose fewer documents, or give a larger pool"
        )
    return warnings


def of_measure(selection: Selection, problem: SelectionProblem) -> list[str]:
    """Warn where the selection is worse than random documents, or the whole pool, by the objective's own value.

    Random selections are of the same size, and keep no other constraint; the mean over all of them is known without a
    draw, since of a sum's square it is that of its mean and its variance. Cost: two passes over the features.
    """
    count = len(problem.sizes)
    if count < 2:
        return []
    size = problem.token_budget if problem.num_selected is None else problem.num_selected
    share = min(1.0, float(size or 0) / float(problem.sizes.sum()))
    features = problem.features
    matrix = features if isinstance(features, FeatureMatrix) else FeatureMatrix([np.asarray(features)])
    total = matrix.weighted_sum(np.ones(count))
    within = max(0.0, float(matrix.squared_norms().sum()) - float(total @ total) / count) / (count - 1)
    spread = count * share * (1 - share) * within  # of the sum of a random sample without replacement
    sign = {"energy": 1.0, "descent": 0.0, "matching": -1.0}[problem.objective]
    by_chance, of_all = _value(problem, share * total) + sign * spread, _value(problem, total)
    own, warnings = f"by the objective's own value the selection ({selection.objective:.4g})", []
    if selection.objective < by_chance:
        warnings.append(
            f"{own} is worse than random documents of the same size ({by_chance:.4g} on average). Relax a constraint, "
            "or choose at random"
        )
    if problem.objective == "matching" and selection.objective < of_all:
        warnings.append(
            f"{own} is worse than the whole pool ({of_all:.4g}). Choose more documents, or give a larger pool"
        )
    return warnings


def _value(problem: SelectionProblem, total: NDArray[np.float64]) -> float:
    """Return the objective of a selection with this sum of features, shape (R,)."""
    if problem.objective == "energy":
        return float(total @ total)
    target = np.asarray(problem.target, dtype=np.float64)
    if problem.objective == "descent":
        return float(total @ target)
    start = np.zeros_like(target) if problem.start is None else np.asarray(problem.start, dtype=np.float64)
    return float(np.sum((start - target) ** 2) - np.sum((total - target) ** 2))
