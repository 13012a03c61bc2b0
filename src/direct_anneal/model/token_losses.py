"""Losses of single tokens under a model, in nats.

B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from direct_anneal.model.batching import IGNORED_LABEL
from direct_anneal.model.probes import predictions

# Of logits in float32 at once. On a CPU a chunk stays in the cache.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 512 << 20}


def token_nats(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood at each place in nats, (B, T) float64, 0 where nothing is predicted.

    Softmax in float32 whatever the model's precision, a chunk of places at a time.

    Args:
        ids: (B, T).
        targets: (B, T), the token that follows; −100 where it is not predicted.

    Raises:
        InputError: the model gives no logits of shape (B, T, V).

    Cost: a forward pass.
    """
    logits = predictions(model, ids)
    rows = max(1, _CHUNK_BYTES.get(logits.device.type, _CHUNK_BYTES["cuda"]) // (4 * logits.shape[-1]))
    precise = torch.promote_types(logits.dtype, torch.float32)
    chunks = zip(torch.split(logits.flatten(0, 1), rows), torch.split(targets.flatten(), rows), strict=True)
    parts = [
        nn.functional.cross_entropy(part.to(precise), target, ignore_index=IGNORED_LABEL, reduction="none")
        for part, target in chunks
    ]
    return torch.cat(parts).reshape(targets.shape).double()
