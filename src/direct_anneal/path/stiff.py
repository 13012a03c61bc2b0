"""Restraint of a walk: steps that are projected off the stiff eigen-directions of the validation loss at θ_s.

M validation documents, D parameters, k directions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from direct_anneal.curvature.lanczos import MatrixFree
from direct_anneal.gradients import GradientSketcher
from direct_anneal.path.documents import Texts
from direct_anneal.path.scoring import BATCH_TOKENS
from direct_anneal.path.walk import Tensors

# Documents that the curvature is of, by hash of ids: eigen-directions of a mean settle long before its value does.
_MOST_DOCUMENTS = 256


class OffStiff:
    """Removes from each step what lies in some orthonormal directions.

    Args:
        eigenvalues: of the directions, (k,) descending, nats over squared parameters.
        directions: shape (k, D), orthonormal, parameters in the order of `named_parameters`.
    """

    def __init__(self, eigenvalues: np.ndarray, directions: Tensor) -> None:
        self.eigenvalues, self.directions = eigenvalues, directions

    def __call__(self, update: Tensors) -> None:
        whole = torch.cat([value.flatten() for value in update.values()])
        whole = whole - self.directions.T @ (self.directions @ whole)
        for value, part in zip(update.values(), torch.split(whole, [v.numel() for v in update.values()]), strict=True):
            value.copy_(part.reshape(value.shape))


def off_stiff(
    model: nn.Module,
    texts: Texts,
    count: int,
    *,
    max_length: int,
    seed: int,
    advance: Callable[[int], object] = lambda _: None,
) -> OffStiff:
    """The stiffest eigen-directions of the GGN of the mean loss over (some of) these documents, at the model's weights.

    Args:
        model: in float32 or float64.
        count: k; fewer where the GGN has no more.
        advance: told 1 for each product.

    Raises:
        ValueError: nothing curves upward, or Lanczos did not converge.

    Cost: some 2k to 5k products of about four gradients each; memory 2k vectors of D entries.
    """
    order = np.argsort(texts.of_folds(texts.num_samples), kind="stable")
    some = texts.take(np.sort(order[:_MOST_DOCUMENTS]))
    sketcher = GradientSketcher(model, 1)  # for its list of parameters: nothing is sketched
    labels = [np.where(np.arange(len(t)) < n, -100, t) for t, n in zip(some.contents, some.num_prompt, strict=True)]
    device = next(model.parameters()).device
    curvature = MatrixFree(
        sketcher,
        some.contents,
        "ggn",
        count,
        labels=labels,
        max_length=max_length,
        batch_tokens=BATCH_TOKENS[device.type],
        seed=seed,
        advance=advance,
    )
    eigenvalues, vectors = curvature.eigenpairs(np.arange(some.num_samples), count)
    basis, _ = np.linalg.qr(vectors)
    directions = torch.from_numpy(np.ascontiguousarray(basis.T)).to(device)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert list(sketcher.parameters) == names, "directions and steps must have their parameters in one order"
    return OffStiff(eigenvalues, directions)
