"""Fit the linear model, cross-fitted: what is said of it is about documents that it did not see.

N documents, P places, L + 1 lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from direct_anneal.distill.hashing import places
from direct_anneal.distill.scorer import LENGTHS, length_of
from direct_anneal.io.digests import short_digest

FOLDS = 5
MAX_STEPS = 40
_PATIENCE = 5  # steps without a gain, after which a fit is not followed further
_LEAST_DOCUMENTS = 2  # that have an n-gram: one that a single document has says nothing of others

Hashed = tuple[NDArray[np.uint64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A linear model of frequencies.

    Attributes:
        weights: (P,) float64.
        lengths: (L + 1,) float64, with the constant.
        predicted: (N,) float64, of each document by the fit to the folds that it is not in.
        num_steps: of conjugate gradients, of the fit to all.
    """

    weights: NDArray[np.float64]
    lengths: NDArray[np.float64]
    predicted: NDArray[np.float64]
    num_steps: int


def frequencies(hashed: Sequence[Hashed], bits: int) -> Any:
    """Share that each n-gram has in each document's, a sparse matrix (N, P).

    Args:
        hashed: hashes and bounds of the documents, block after block.

    Cost: 12 bytes for each different n-gram of a document.
    """
    blocks = []
    for hashes, bounds in hashed:
        single, pairs = places(hashes, bounds, bits)
        counts = np.diff(bounds)
        rows = np.repeat(np.arange(len(counts)), counts)
        is_pair = pairs >= 0
        rows, columns = np.concatenate([rows, rows[is_pair]]), np.concatenate([single, pairs[is_pair]])
        share = 1 / np.maximum(2 * counts - 1, 1)
        block = sp.csr_array((share[rows], (rows, columns)), shape=(len(counts), 2**bits))
        block.sum_duplicates()
        blocks.append(block)
    return sp.vstack(blocks, format="csr")


def folds_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """Assign each document to a fold by a hash of its id: (N,)."""
    digests = (short_digest(name, 8) for name in ids)
    return np.array([int.from_bytes(digest) % FOLDS for digest in digests], dtype=np.int64)


def normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks as quantiles of the normal distribution, (N,): the order counts; no tail outweighs the rest."""
    return np.asarray(ndtri((rankdata(values) - 0.5) / len(values)))


def fit(
    shares: Any,
    counts: NDArray[np.int64],
    target: NDArray[np.float64],
    folds: NDArray[np.int64],
    advance: Callable[[int], object] = lambda _: None,
) -> Fitted:
    """Fit least squares by conjugate gradients, stopped where documents that are left out gain no more.

    Each of the folds is predicted by a fit to the others, of whose steps the next fold decides. The fit to all takes
    their median. Frequencies are scaled by the root of their root mean square, so that rare n-grams count more than
    least squares would let them, and less than if all varied alike.

    Args:
        shares: (N, P), sparse.
        counts: words of each document, (N,).
        target: (N,).
        folds: (N,) in [0, FOLDS).

    Cost: twice FOLDS + 1 fits, each two passes over the shares a step. Everything is float64, in one order.

    Source: conjugate gradients for least squares (Hestenes and Stiefel, 1952); the early stop regularises as ridge.
    """
    matrix, scale = _scaled(shares, counts)
    predicted = np.empty(len(target))
    chosen = []
    for fold in range(FOLDS):
        held_out, judged = folds == fold, folds == (fold + 1) % FOLDS
        steps = _best_steps(matrix, target, ~(held_out | judged), judged)
        advance(1)
        solution, mean = _solved(matrix[~held_out], target[~held_out], steps)
        predicted[held_out] = matrix[held_out] @ solution + mean
        chosen.append(steps)
        advance(1)
    num_steps = int(np.median(chosen))
    solution, mean = _solved(matrix, target, num_steps)
    advance(1)
    num_places = shares.shape[1]
    return Fitted(
        weights=solution[:num_places] * scale,
        lengths=solution[num_places:] + mean,
        predicted=predicted,
        num_steps=num_steps,
    )


def _scaled(shares: Any, counts: NDArray[np.int64]) -> tuple[Any, NDArray[np.float64]]:
    """Return the matrix that is fitted, (N, P + L + 1), and what its first P columns were multiplied by."""
    num_documents, num_places = shares.shape
    present = np.bincount(shares.indices, minlength=num_places)
    squares = np.bincount(shares.indices, weights=shares.data**2, minlength=num_places)
    scale = np.zeros(num_places)
    usable = present >= _LEAST_DOCUMENTS
    scale[usable] = (squares[usable] / num_documents) ** -0.25
    scaled = shares @ sp.diags_array(scale)
    size = np.sqrt(max(float((scaled.data**2).sum()) / num_documents, np.finfo(np.float64).tiny))
    ones = np.ones(num_documents)
    lengths = sp.csr_array(
        (ones, (np.arange(num_documents), length_of(counts))), shape=(num_documents, len(LENGTHS) + 1)
    )
    return sp.hstack([scaled / size, lengths], format="csr"), scale / size


def _best_steps(matrix: Any, target: NDArray[np.float64], shown: NDArray[np.bool_], judged: NDArray[np.bool_]) -> int:
    """Count the steps of a fit to those shown after which those judged are predicted best; at least one."""
    rows, wanted, mean = matrix[judged], target[judged], float(target[shown].mean())
    best, least = 1, np.inf
    for step, solution in enumerate(islice(_steps(matrix[shown], target[shown] - mean), MAX_STEPS), start=1):
        error = float(np.mean((rows @ solution + mean - wanted) ** 2))
        if error < least:
            best, least = step, error
        elif step - best >= _PATIENCE:
            break
    return best


def _solved(matrix: Any, target: NDArray[np.float64], num_steps: int) -> tuple[NDArray[np.float64], float]:
    mean = float(target.mean())
    steps = [np.zeros(matrix.shape[1]), *islice(_steps(matrix, target - mean), num_steps)]
    return steps[-1], mean


def _steps(matrix: Any, target: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield the solution after each step, (P + L + 1,), until nothing is left to gain."""
    back = matrix.T.tocsr()
    solution, residual = np.zeros(matrix.shape[1]), target.copy()
    slope = back @ residual
    direction, squared = slope.copy(), _dot(slope, slope)
    smallest = squared * np.finfo(np.float64).eps
    while squared > smallest:
        moved = matrix @ direction
        length = squared / _dot(moved, moved)
        solution = solution + length * direction
        residual -= length * moved
        slope = back @ residual
        before, squared = squared, _dot(slope, slope)
        direction = slope + squared / before * direction
        yield solution


def _dot(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the inner product whose bits do not depend on the threads of a BLAS."""
    return float(np.add.reduce(one * other))
