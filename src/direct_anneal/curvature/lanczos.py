"""The leading eigenpairs of the validation loss's GGN or Hessian, and their place in sketch space.

M validation samples, D parameters, R sketch size, k eigenpairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from direct_anneal.curvature.cutoff import energy_share
from direct_anneal.curvature.functional import evaluating
from direct_anneal.curvature.matvec import Matrix, product
from direct_anneal.curvature.spectrum import Spectrum
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import IGNORED_LABEL, Tokens, batches, num_predicted, padded, windows_of
from direct_anneal.model.lengths import length_switches

RTOL = 1e-4
_MAX_RESTARTS = 100
_NOTHING_STIFF = "the validation loss curves upward nowhere: it has no stiff directions"


class MatrixFree:
    """Estimates curvature by Lanczos iteration on products with vectors.

    The loss is the mean over samples of each sample's mean token negative log-likelihood. Of the Hessian only what
    curves upward is kept: along negative curvature noise does not raise the loss, to second order, so that it needs
    no budget and counts as flat.

    An eigenvector v becomes S v, and these are orthonormalised from the stiffest on. Eigenvalues stay exact. Lost is
    what the sketch loses of any vector: an inner product ⟨v, g⟩ is known to about ‖g‖/√R, each S v keeps its
    direction but for what it seems to share with stiffer ones, of order √(k/R), and what lies beyond the k pairs is
    flat, stiff though it may be.

    Args:
        sketcher: S, the model and the parameters that are covered.
        documents: tokens of each of the M samples.
        matrix: "ggn" or "hessian".
        num_eigenpairs: k; fewer where D, R or the matrix allow no more.
        labels: as in `windows_of`; the tokens themselves where left out.
        max_length, batch_tokens: as in `batches`; the latter changes no more than rounding.
        rtol: of an eigenpair, ‖H v − λ v‖ ≤ rtol · λ.
        seed: of the first vector.
        advance: told 1 for each product.

    Raises:
        ValueError: the model's precision is below float32.

    Cost: some 2k to 5k products over all samples; memory 2k vectors of D entries in the model's precision.

    Source: ARPACK's implicitly restarted Lanczos (Lehoucq, Sorensen, Yang, 1998) through SciPy.
    """

    def __init__(
        self,
        sketcher: GradientSketcher,
        documents: Sequence[Tokens],
        matrix: Matrix,
        num_eigenpairs: int,
        *,
        labels: Sequence[Tokens] | None = None,
        max_length: int,
        batch_tokens: int,
        rtol: float = RTOL,
        seed: int = 0,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._sketcher = sketcher
        self._documents = documents
        self._labels = documents if labels is None else labels
        self._matrix: Matrix = matrix
        self._num_eigenpairs = num_eigenpairs
        self._max_length = max_length
        self._batch_tokens = batch_tokens
        self._rtol = rtol
        self._seed = seed
        self._advance = advance
        # Leaves of our own on the model's storage: nothing of the model itself is switched.
        self._leaves = {name: p.detach().requires_grad_() for name, p in sketcher.parameters.items()}
        dtypes = {leaf.dtype for leaf in self._leaves.values()}
        if not dtypes <= {torch.float32, torch.float64}:
            raise ValueError(f"products need a model in float32 or float64, got {', '.join(map(str, dtypes))}")
        self._dtype = np.dtype("float32" if torch.float32 in dtypes else "float64")

    @property
    def num_parameters(self) -> int:
        """D."""
        return sum(leaf.numel() for leaf in self._leaves.values())

    def operator(self, samples: NDArray[np.intp]) -> LinearOperator:
        """Return the curvature of the mean loss over these samples, D × D, parameters in the sketcher's order.

        Raises:
            ValueError: on use, where a product is not finite.
        """
        documents = [self._documents[sample] for sample in samples]
        labels = [self._labels[sample] for sample in samples]
        counts = np.array([float(num_predicted(wanted, self._max_length)) for wanted in labels])
        windows = windows_of(documents, max_length=self._max_length, labels=labels)
        parts = [padded(batch) for batch in batches(windows, self._batch_tokens, length_switches(self._sketcher.model))]

        def times(vector: NDArray[np.floating]) -> NDArray[np.floating]:
            pieces = self._pieces(torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype=self._dtype)))
            total = [torch.zeros_like(leaf) for leaf in pieces.values()]
            with evaluating(self._sketcher.model), torch.enable_grad():
                for batch in parts:
                    predicted = batch.labels != IGNORED_LABEL
                    weights = predicted / torch.from_numpy(counts[batch.documents] * len(documents))[:, None]
                    device, dtype = self._sketcher.device, total[0].dtype
                    of_batch = product(
                        self._matrix,
                        self._sketcher.model,
                        self._leaves,
                        pieces,
                        batch.ids.to(device),
                        batch.labels.to(device),
                        weights.to(device, dtype),
                    )
                    for sum_, part in zip(total, of_batch, strict=True):
                        sum_ += part
            out = torch.cat([piece.flatten() for piece in total]).cpu().numpy()
            if not np.all(np.isfinite(out)):
                raise ValueError(f"products with the {self._matrix} must be finite, but the model overflows")
            self._advance(1)
            return out

        return LinearOperator((self.num_parameters,) * 2, matvec=times, dtype=self._dtype)

    def spectrum(self, samples: NDArray[np.intp]) -> Spectrum:
        """Return the k largest positive eigenvalues and their vectors in sketch space, over these samples.

        Raises:
            ValueError: nothing curves upward, a product is not finite, or Lanczos did not converge.
        """
        most = min(self._num_eigenpairs, self._sketcher.projection.sketch_size)
        eigenvalues, vectors = self.eigenpairs(samples, most)
        sketched, _ = np.linalg.qr(self._sketched(vectors))
        return Spectrum(eigenvalues, sketched, energy_share()(eigenvalues), len(samples))

    def eigenpairs(self, samples: NDArray[np.intp], most: int) -> tuple[NDArray[np.float64], NDArray[np.floating]]:
        """Return the largest positive eigenvalues, (k,) descending, and their vectors, (D, k), over these samples.

        Args:
            most: k; fewer where D or the matrix allow no more.

        Raises:
            ValueError: as for `spectrum`.
        """
        count = min(most, self.num_parameters - 1)
        operator = self.operator(samples)
        generator = np.random.Generator(np.random.Philox(key=self._seed))
        first = generator.standard_normal(self.num_parameters).astype(self._dtype)
        if not np.any(operator @ first):  # ARPACK makes an error of its own out of nothing
            raise ValueError(_NOTHING_STIFF)
        try:
            eigenvalues, vectors = eigsh(
                operator,
                k=count,
                which="LA",
                v0=first,
                tol=self._rtol,
                maxiter=_MAX_RESTARTS,
            )
        except ArpackNoConvergence as error:
            raise ValueError(
                f"Lanczos must converge, but found {len(error.eigenvalues)} of {count} eigenpairs in {_MAX_RESTARTS} "
                "restarts: ask for fewer"
            ) from error
        eigenvalues, vectors = eigenvalues[::-1].astype(np.float64), vectors[:, ::-1]
        # Below this an eigenvalue is the rounding of the products.
        floor = 32 * float(np.finfo(self._dtype).eps) * eigenvalues[0]
        kept = eigenvalues > max(floor, 0.0)
        if not kept.any():
            raise ValueError(_NOTHING_STIFF)
        return eigenvalues[kept], vectors[:, kept]

    def _sketched(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return S v for each column, shape (R, k)."""
        projection = self._sketcher.projection
        projection.begin(vectors.shape[1])
        for name, piece in self._pieces(torch.from_numpy(np.ascontiguousarray(vectors.T))).items():
            projection.full(name, piece)
        return projection.finish().cpu().numpy().astype(np.float64).T

    def _pieces(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return vectors of D entries, shape (..., D), cut into tensors of the parameters' shapes."""
        sizes = [leaf.numel() for leaf in self._leaves.values()]
        moved = torch.split(vectors.to(self._sketcher.device), sizes, dim=-1)
        return {
            name: piece.reshape(*vectors.shape[:-1], *leaf.shape)
            for (name, leaf), piece in zip(self._leaves.items(), moved, strict=True)
        }
