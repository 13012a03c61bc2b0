"""Conditional loss reduction (CoLoR-Filter, arXiv:2406.10670): what training on the target does for a document.

A *prior* model has seen general text, a *conditional* one is the prior fine-tuned on the target; documents that the
conditional model finds most likely beside the prior are taken. The paper trains both from scratch; here the prior is
the checkpoint annealed on random text of the pool, and the conditional model the prior annealed on the validation set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from direct_anneal.baselines.candidates import Candidates


def conditional_loss(candidates: Candidates, seed: int) -> NDArray[np.float64]:  # noqa: ARG001 (one signature for all)
    """Return loss under the prior minus loss under the conditional model, nats a token, (N,)."""
    return candidates.losses("prior") - candidates.losses("conditional")
