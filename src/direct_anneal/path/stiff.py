"""Stiff eigen-directions of the validation loss at θ_s: steps that keep off them, and what a document costs in them.

M validation documents, n documents of a shard, D parameters, k directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from direct_anneal.curvature.lanczos import MatrixFree
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import batches, labelled, padded, windows_of
from direct_anneal.model.lengths import length_switches
from direct_anneal.path.documents import Texts
from direct_anneal.path.kept import keep_tensors
from direct_anneal.path.scoring import BATCH_TOKENS, OutOfMemoryError
from direct_anneal.path.walk import Tensors, kept_note

# Documents that the curvature is of, by hash of ids: eigen-directions of a mean settle long before its value does.
_MOST_DOCUMENTS = 256


class OffStiff:
    """Restraint that removes from each step what lies in some orthonormal directions, or damps it there.

    Args:
        eigenvalues: of the directions, (k,) descending, nats over squared parameters.
        directions: shape (k, D), orthonormal, parameters in the order of `named_parameters`.
        share: of a step's part in these directions that is taken: 0 none of it.
    """

    def __init__(self, eigenvalues: np.ndarray, directions: Tensor, share: float = 0.0) -> None:
        self.eigenvalues, self.directions, self.share = eigenvalues, directions, share

    def __call__(self, update: Tensors) -> None:
        whole = torch.cat([value.flatten() for value in update.values()])
        whole = whole - (1 - self.share) * (self.directions.T @ (self.directions @ whole))
        for value, part in zip(update.values(), torch.split(whole, [v.numel() for v in update.values()]), strict=True):
            value.copy_(part.reshape(value.shape))


def off_stiff(
    model: nn.Module,
    texts: Texts,
    count: int,
    *,
    max_length: int,
    seed: int,
    share: float = 0.0,
    advance: Callable[[int], object] = lambda _: None,
) -> OffStiff:
    """Find the stiffest eigen-directions of the GGN of the mean loss over (some of) these documents, at these weights.

    Args:
        model: in float32 or float64.
        count: k; fewer where the GGN has no more.
        share: as of `OffStiff`.
        advance: told 1 for each product.

    Raises:
        ValueError: nothing curves upward, or Lanczos did not converge.

    Cost: some 2k to 5k products of about four gradients each; memory 2k vectors of D entries.
    """
    order = np.argsort(texts.of_folds(texts.num_samples), kind="stable")
    some = texts.take(np.sort(order[:_MOST_DOCUMENTS]))
    sketcher = GradientSketcher(model, 1)  # for its list of parameters: nothing is sketched
    labels = [labelled(tokens, length) for tokens, length in zip(some.contents, some.num_prompt, strict=True)]
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
    return OffStiff(eigenvalues, directions, share)


class Slopes:
    """Slopes of documents' mean token losses along directions, ⟨v_j, ∇ℓ_i⟩, exact up to float32's rounding.

    Args:
        model: at θ_s, in evaluation mode.
        directions: shape (k, D), parameters in the order of `named_parameters`.

    Cost: a gradient of each document, and 2 k D for its inner products.
    """

    def __init__(self, model: nn.Module, directions: Tensor) -> None:
        self._sketcher = GradientSketcher(model, projection=directions, reduction="sum")

    def __call__(
        self,
        contents: Sequence[NDArray[np.int64]],
        num_prompt: NDArray[np.int64],
        *,
        max_length: int,
        batch_tokens: int,
        advance: Callable[[int], object] = lambda _: None,
    ) -> NDArray[np.float64]:
        """Compute the slopes, (n, k); NaN where a document predicts nothing.

        Args:
            contents, num_prompt, max_length, batch_tokens, advance: as of `path.scoring.losses_of`.

        Raises:
            OutOfMemoryError: a batch does not fit; what `advance` was told is taken back.
        """
        sums = np.zeros((len(contents), self._sketcher.projection.sketch_size))
        predicted, done = np.zeros(len(contents)), 0
        windows = windows_of(contents, max_length=max_length, num_prompt=num_prompt)
        for batch in batches(windows, batch_tokens, length_switches(self._sketcher.model)):
            rows = padded(batch)
            try:
                found = self._sketcher.sketch(rows.ids, rows.mask, rows.labels)
            except (torch.OutOfMemoryError, MemoryError) as error:
                advance(-done)
                raise OutOfMemoryError(f"{len(batch)} windows of {rows.ids.shape[1]} tokens") from error
            np.add.at(sums, rows.documents, found.values.cpu().numpy().astype(np.float64))
            np.add.at(predicted, rows.documents, found.num_tokens.cpu().numpy().astype(np.float64))
            amount = sum(len(window.tokens) for window in batch)
            advance(amount)
            done += amount
        advance(sum(map(len, contents)) - done)
        with np.errstate(invalid="ignore"):
            slopes: NDArray[np.float64] = sums / predicted[:, None]
        return slopes


def keep_directions(path: Path, found: OffStiff, mark: str) -> None:
    """Write directions with their eigenvalues, whole or not at all."""
    told = {"mark": mark, "eigenvalues": ",".join(value.hex() for value in found.eigenvalues.tolist())}
    keep_tensors(path, {"directions": found.directions.cpu().contiguous()}, told)


def kept_directions(path: Path, mark: str, share: float) -> OffStiff | None:
    """Return directions that `keep_directions` wrote under this mark, on the CPU; None where there are none."""
    note = kept_note(path, mark)
    if note is None:
        return None
    eigenvalues = np.array([float.fromhex(value) for value in note["eigenvalues"].split(",")])
    return OffStiff(eigenvalues, load_file(str(path))["directions"], share)
