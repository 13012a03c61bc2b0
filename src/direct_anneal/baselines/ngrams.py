"""Words and pairs of words, hashed: what DSIR and the quality classifier see of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from direct_anneal.errors import InputError

WORDS = r"\w+|[^\w\s]+"  # words, and runs of punctuation, as in DSIR's own tokenizer


def counts(texts: Sequence[str], num_buckets: int) -> Any:
    """Return counts of hashed unigrams and bigrams in lower case, a sparse matrix of shape (len(texts), num_buckets).

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise InputError(
            "DSIR and the quality classifier need scikit-learn, which is not installed: "
            "pip install 'direct-anneal[compare]'"
        ) from error
    vectorizer = HashingVectorizer(
        token_pattern=WORDS, ngram_range=(1, 2), n_features=num_buckets, alternate_sign=False, norm=None
    )
    return vectorizer.transform(texts)
