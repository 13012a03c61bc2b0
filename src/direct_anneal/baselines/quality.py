"""A classifier of target against pool on hashed n-grams, as data curation pipelines use (DCLM, arXiv:2406.11794)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates
from direct_anneal.baselines.ngrams import counts
from direct_anneal.baselines.plain import random

NUM_BUCKETS = 2**18
NEGATIVES_PER_POSITIVE = 5


def quality_classifier(candidates: Candidates, seed: int) -> NDArray[np.float64]:
    """Return the log-odds that a document is of the target: logistic regression on its unit vector of log counts.

    Positives are the validation set; negatives are drawn from the pool. What a classifier was shown as negative it
    scores low, so that the pool is halved by hash: each half is scored by the classifier that saw the other.
    """
    pool, positive = (counts(texts, NUM_BUCKETS) for texts in (candidates.pool_texts, candidates.validation_texts))
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    pool, positive = normalize(pool.log1p()), normalize(positive.log1p())

    order = random(candidates, seed)
    half = random(candidates, seed + 2**32) < 0.5
    scores = np.full(len(order), np.nan)
    for scored in (half, ~half):
        shown = np.flatnonzero(~scored)
        shown = shown[np.argsort(order[shown])][: NEGATIVES_PER_POSITIVE * positive.shape[0]]
        if not len(shown) or not scored.any():
            raise ValueError(f"the classifier needs a pool of more than {len(order)} documents")
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        labels = np.repeat([1, 0], [positive.shape[0], len(shown)])
        model.fit(vstack([positive, pool[shown]]), labels)
        scores[scored] = model.decision_function(pool[scored])
    return scores
