"""manifest.json: everything that a run was asked for, found and did."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import CrossFit, Spectrum
from direct_anneal.data import MAX_PLACES, Corpus
from direct_anneal.features import SketchedGradients
from direct_anneal.gradients import EXCLUDED, SLOW, Coverage
from direct_anneal.objectives import Built, SelectionObjective
from direct_anneal.run.sources import lists_entry
from direct_anneal.solver import Selection

_DISTRIBUTIONS = ("direct-anneal", "torch", "numpy", "scipy", "pyarrow", "safetensors", "transformers")
QUARANTINE_COLUMNS = ["id", "source", "row", "reason"]
Energies = tuple[NDArray[np.float64], NDArray[np.float64]]

_DOMAIN_COUNTS = ("pool", "pool_tokens", "selected", "selected_tokens", "validation", "validation_tokens")


def configuration(config: SelectConfig, max_length: int) -> dict[str, Any]:
    """Return the configuration in full, with the window that it came to and digests of lists of ids."""
    return {**config.in_full, "max_length": max_length, **lists_entry(config)}


def versions() -> dict[str, str]:
    """Return versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS}


def corpus_entry(corpus: Corpus, gradients: SketchedGradients) -> dict[str, Any]:
    """Return documents read, their issues, and the quarantined ones."""
    return {
        "documents": corpus.num_samples,
        "tokens": int(corpus.num_tokens.sum()),
        "vocab_size": corpus.vocab_size,
        "sources": [str(source) for source in corpus.sources],
        "incidents": corpus.issues.to_manifest(),
        "quarantined": {
            "count": len(gradients.quarantined),
            "samples": gradients.quarantined.select(QUARANTINE_COLUMNS)[:MAX_PLACES].to_pylist(),
        },
    }


def coverage_entry(coverage: Coverage) -> dict[str, Any]:
    """Return the coverage of the parameters, with shares of entries and of the squared gradient norm."""
    return {
        "summary": coverage.summary,
        "entries": coverage.entries,
        "ways": [
            {
                "way": way.name,
                "num_parameters": len(way.parameters),
                "share": way.entries / coverage.entries,
                "squared_norm": way.squared_norm,
                "parameters": list(way.parameters[:MAX_PLACES]) if way.name in (SLOW, EXCLUDED) else [],
            }
            for way in coverage.ways
        ],
    }


def composition(evidence: pa.Table, validation: Corpus) -> dict[str, Any]:
    """Compare pool and selection by domain, and what shifted: losses in nats per token, lengths in tokens."""
    chosen = evidence.filter(evidence["selected"])
    usable = evidence.filter(evidence["rank"].is_valid())  # the loss of an outlier would be the mean
    domains: dict[str, dict[str, int]] = {}
    for role, part in (("pool", evidence), ("selected", chosen), ("validation", validation.index)):
        for domain, num_documents, num_tokens in _by_domain(part):
            entry = domains.setdefault(domain, dict.fromkeys(_DOMAIN_COUNTS, 0))
            entry[role], entry[f"{role}_tokens"] = num_documents, num_tokens
    return {
        "domains": {name: domains[name] for name in sorted(domains)},
        "loss_mean": {"pool": _mean(usable["loss"]), "selected": _mean(chosen["loss"])},
        "num_tokens_median": {"pool": _median(evidence["num_tokens"]), "selected": _median(chosen["num_tokens"])},
    }


def _by_domain(part: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield each domain with its documents and tokens."""
    encoded = part["domain"].combine_chunks().dictionary_encode()
    place = encoded.indices.to_numpy()
    tokens = np.zeros(len(encoded.dictionary), np.int64)
    np.add.at(tokens, place, part["num_tokens"].to_numpy())
    documents = np.bincount(place, minlength=len(tokens))
    for which in np.flatnonzero(documents).tolist():  # a table's part has the names of the whole
        yield encoded.dictionary[which].as_py(), int(documents[which]), int(tokens[which])


def spectrum_entry(
    spectrum: Spectrum, crossed: CrossFit | None, energies: Energies | None, config: SelectConfig
) -> dict[str, Any]:
    """Return eigenvalues and elbow, and what the validation set costs and holds in sample and held out.

    `energy` is the share of the eigenvalues listed that is stiff; for ggn and hessian these are leading ones only.

    Args:
        energies: as `cross_energies` gives them.
    """
    eigenvalues = spectrum.eigenvalues
    in_sample, held_out = (None, None) if energies is None else (part.tolist() for part in energies)
    return {
        "eigenvalues": spectrum.eigenvalues.tolist(),
        "num_stiff": spectrum.num_stiff,
        "num_validation": spectrum.num_validation,
        "energy": float(eigenvalues[: spectrum.num_stiff].sum() / eigenvalues.sum()),
        "curvature": config.curvature,
        "bands": [band.stop for band in spectrum.bands(getattr(config.chosen_objective, "bands", 1))],
        "stiff_cost_in_sample": None if crossed is None else float(crossed.in_sample.sum(axis=1).mean()),
        "stiff_cost_held_out": None if crossed is None else float(crossed.held_out.sum(axis=1).mean()),
        "directions_in_sample": in_sample,
        "directions_held_out": held_out,
    }


def budget_entry(
    objective: SelectionObjective, built: Built, selection: Selection, *, relaxed: bool
) -> dict[str, Any] | None:
    """Return budget allowed, used and possible: absolute (for each band where there are several), and as ratios.

    The ratio and the limits are null where there is no budget, and all of it where nothing has a stiff cost.
    """
    if built.units is None:
        return None
    least = selection.stats["least_feasible"]
    return {
        "ratio": _finite(built.ratio(selection.budget)),
        "reference": getattr(objective, "budget_reference", "pool"),
        "limit": _plain(selection.budget),
        "used": _plain(selection.budget_used),
        "used_ratio": built.ratio(selection.budget_used),
        "least_feasible": _plain(least),
        "least_feasible_ratio": built.ratio(least),
        "relaxed": relaxed,
    }


def objective_entry(objective: SelectionObjective, built: Built, selection: Selection) -> dict[str, Any]:
    """Return its options, what it found out, its value, the bound on any selection's, and the starts of the search."""
    return {
        "name": objective.name,
        "goal": objective.goal,
        "meaning": objective.meaning,
        **objective.options(),
        **built.facts,
        "value": selection.objective,
        "bound": selection.bound,
        "starts": selection.stats.get("starts", []),
    }


def beside_entry(
    objective: SelectionObjective,
    solved: tuple[Built, Selection, float | None] | None,
    selection: Selection,
    samples: pa.Table,
) -> dict[str, Any]:
    """Return the choice of another objective at the same size, and at the same ratio where that is feasible for it.

    Its name alone, with `feasible` false, where it has no selection at any budget that was tried.
    """
    if solved is None:
        return {"objective": objective.name, "feasible": False}
    built, other, least = solved
    domains = samples["domain"].take(pa.array(other.indices)).value_counts().to_pylist()
    return {
        "objective": objective.name,
        "feasible": True,
        "shared": len(np.intersect1d(selection.indices, other.indices)) / len(selection.indices),
        "ratio": _finite(built.ratio(other.budget)),
        "relaxed": least is not None,
        "domains": {str(entry["values"]): int(entry["counts"]) for entry in domains},
    }


def besides(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons of a manifest; runs of 0.1 have one, unasked."""
    return [*manifest.get("beside", [manifest[name] for name in ("alternative",) if name in manifest])]


def _plain(budget: Any) -> float | list[float | None] | None:
    """Convert to JSON: one number, or one for each band."""
    return _finite(float(budget)) if np.ndim(budget) == 0 else [_finite(float(one)) for one in budget]


def _finite(number: float) -> float | None:
    """Return null in the place of no limit."""
    return number if np.isfinite(number) else None


def _mean(column: pa.ChunkedArray) -> float:
    return float(column.to_numpy().mean())


def _median(column: pa.ChunkedArray) -> float:
    return float(np.median(column.to_numpy()))
