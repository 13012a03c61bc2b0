"""The validation set's spectrum by the estimator that was asked for, kept where it took the model to find it.

M validation samples, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import (
    CrossFit,
    CurvatureEstimator,
    CurvatureName,
    Elbow,
    Estimate,
    MatrixFree,
    SecondMoment,
    cross_energies,
    cross_fit,
    energy_share,
    estimate,
    fixed_number,
    load_estimate,
    monte_carlo_sketches,
    save_estimate,
    widest_gap,
)
from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.features import SketchedGradients
from direct_anneal.features.batching import BATCH_TOKENS
from direct_anneal.gradients import GradientSketcher
from direct_anneal.model.batching import labelled
from direct_anneal.progress import Work
from direct_anneal.selection.known import Known
from direct_anneal.selection.stages import Stages

# Of the numbers that estimates consist of: raised where they would change.
ESTIMATE_VERSION = 1


_UNITS: dict[CurvatureName, str] = {
    "empirical-fisher": "samples",
    "mc-fisher": "tokens",
    "ggn": "products",
    "hessian": "products",
}


@dataclass(frozen=True)
class Curvature:
    """The validation set's spectra, and how far they hold.

    Attributes:
        estimate: of all samples and of the halves, split where stiff ends.
        crossed: stiff costs of each half in sample and held out; None where there are too few samples.
        energies: of the directions, as `cross_energies` gives them.
    """

    estimate: Estimate
    crossed: CrossFit | None
    energies: tuple[NDArray[np.float64], NDArray[np.float64]] | None


def curvature_of(config: SelectConfig, known: Known, stages: Stages) -> Curvature | None:
    """Take the spectrum; None where no objective looks at gradients.

    Raises:
        InputError: as for `estimate_curvature`.
    """
    if not known.has_gradients:
        return None
    work = Work(role="validation", unit="documents" if config.is_empirical else "tokens")
    with stages.stage("Spectrum of the validation set", _UNITS[config.curvature], work=work) as advance:
        z = known.validation.dense()[known.order]  # (M, R)
        found = estimate_curvature(
            config,
            known.corpora["validation"],
            known.validation,
            known.order,
            max_length=known.tokens.max_length,
            fingerprint=known.fingerprint,
            directory=known.origin.path / "curvature",
            build_sketcher=known.build_sketcher,
            advance=advance,
        )
        if found.halves is None:
            return Curvature(found, None, None)
        return Curvature(found, cross_fit(z, found.halves), cross_energies(z, found.halves))


def estimate_curvature(
    config: SelectConfig,
    corpus: Corpus,
    validation: SketchedGradients,
    order: NDArray[np.intp],
    *,
    max_length: int,
    fingerprint: Mapping[str, Any],
    directory: Path,
    build_sketcher: Callable[[], GradientSketcher],
    advance: Callable[[int], object],
) -> Estimate:
    """Estimate spectra of the whole validation set and its halves, split at the elbow.

    Args:
        corpus: the validation set's documents.
        validation: the gradients of those that have one.
        order: of `validation`, shape (M,); halves are its even and odd places.
        fingerprint: what the validation set's features depend on.
        directory: where estimates are kept that took the model.
        build_sketcher: called only where the estimator needs the model and nothing is kept of an earlier run.
        advance: told how much work is done, in no unit that is known before.

    Raises:
        InputError: there is no curvature to split, or less of it than `num_stiff` asks for.
    """
    try:
        if config.curvature == "empirical-fisher":
            found = estimate(SecondMoment(validation.dense()[order]), len(order))
            advance(len(order))
        else:
            path = directory / f"{config.curvature}.safetensors"
            whole = {**fingerprint, "num_eigenpairs": config.eigenpairs, "estimate_version": ESTIMATE_VERSION}
            kept = load_estimate(path, whole)
            if kept is None:
                estimator = _estimator(config, corpus, validation, order, max_length, build_sketcher(), advance)
                save_estimate(path, estimate(estimator, len(order)), whole)
                kept = load_estimate(path, whole)  # so that a first run and a second one hold the very same arrays
            assert kept is not None
            found = kept
    except InputError:
        raise
    except ValueError as error:
        raise InputError(subject="the validation set", must="have a spectrum", got=f"but {error}") from error
    if config.num_stiff is not None and config.num_stiff > (rank := len(found.whole.eigenvalues)):
        raise InputError(
            field="num_stiff",
            must=f"be at most the {rank} directions that the spectrum has",
            got=config.num_stiff,
            do="lower it, or add validation samples",
        )
    return found.split(elbow_rule(config))


def _estimator(
    config: SelectConfig,
    corpus: Corpus,
    validation: SketchedGradients,
    order: NDArray[np.intp],
    max_length: int,
    sketcher: GradientSketcher,
    advance: Callable[[int], object],
) -> CurvatureEstimator:
    ids = validation.samples["id"].take(order)
    places = pc.index_in(ids, corpus.index["id"].combine_chunks()).to_pylist()
    documents = [corpus.tokens(place) for place in places]
    prompts = corpus.num_prompt.tolist()
    labels = [labelled(tokens, prompts[place]) for tokens, place in zip(documents, places, strict=True)]
    size = BATCH_TOKENS if config.batch_tokens is None else config.batch_tokens
    if config.curvature == "mc-fisher":
        names = ids.to_pylist()
        return SecondMoment(
            monte_carlo_sketches(
                sketcher,
                documents,
                names,
                labels=labels,
                max_length=max_length,
                batch_tokens=size,
                seed=config.seed,
                advance=advance,
            )
        )
    assert config.curvature in ("ggn", "hessian")
    assert config.eigenpairs is not None
    return MatrixFree(
        sketcher,
        documents,
        config.curvature,
        config.eigenpairs,
        labels=labels,
        max_length=max_length,
        batch_tokens=size,
        seed=config.seed,
        advance=advance,
    )


def elbow_rule(config: SelectConfig) -> Elbow:
    """Return the cutoff, as asked for."""
    if config.num_stiff is not None:
        return fixed_number(config.num_stiff)
    return widest_gap if config.elbow == "gap" else energy_share(config.elbow)
