"""Parts of the validation set that have a path of their own, and the walks that each needs.

M validation documents, k folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.errors import InputError
from direct_anneal.io.records import read_sealed, write_record
from direct_anneal.path.clusters import clusters_of
from direct_anneal.path.config import PathConfig
from direct_anneal.path.walks import Walks
from direct_anneal.progress import Work

_CLUSTERS = "clusters.json"
_SHOWN = 5  # ids of a cluster, for the manifest


@dataclass(frozen=True)
class Part:
    """The documents of the validation set that one path is walked on.

    Attributes:
        prefix: of the names of its walks.
        rows: positions in the validation set.
    """

    prefix: str
    rows: NDArray[np.intp]

    def left(self, fold: int) -> str:
        """Name of the walk that leaves a fold out."""
        return f"{self.prefix}fold-{fold}"

    def shared(self, shared: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Map the pool's documents that are in the validation set to those that are in this part of it."""
        own = set(self.rows.tolist())
        found = {place: [row for row in same if row in own] for place, same in shared.items()}
        return {place: same for place, same in found.items() if same}

    def walks(
        self, config: PathConfig, folds: NDArray[np.int64], shared: Mapping[int, Sequence[int]]
    ) -> dict[str, NDArray[np.intp]]:
        """Return walks that are needed, by name, each with its documents."""
        whole = {f"{self.prefix}whole": self.rows} if config.scored_ends == "whole" else {}
        if whole and not self.shared(shared):
            return whole
        left = {self.left(fold): self.rows[folds[self.rows] != fold] for fold in range(config.num_folds)}
        if not all(map(len, left.values())):
            raise InputError(
                subject="each part of the validation set that has a path of its own",
                must="hold documents of two folds",
                got="but one does not",
                do="give more of it, or walk fewer paths",
            )
        return {**whole, **left}

    def is_scored(self, walk: str, config: PathConfig) -> bool:
        """True if the whole pool is scored at the end of this walk."""
        return config.scored_ends == "folds" or walk == f"{self.prefix}whole"


def parts_of(validation: Corpus, run: Walks) -> dict[str, Part]:
    """Return the parts of the validation set that have a path of their own, by name."""
    config = run.config
    if config.paths == "one":
        return {"validation": Part("", np.arange(validation.num_samples))}
    if config.paths == "domains":
        domains = np.array(validation.index["domain"].to_pylist(), dtype=object).astype(str)
        return {
            name: Part(f"part-{place}-", np.flatnonzero(domains == name))
            for place, name in enumerate(sorted(set(domains.tolist())))
        }
    labels = _clusters(run)
    return {
        f"cluster-{place}": Part(f"part-{place}-", np.flatnonzero(labels == place)) for place in range(labels.max() + 1)
    }


def described(parts: Mapping[str, Part], ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """Describe the parts for the manifest: each one's number of documents, and the ids of some."""
    return {
        name: {"documents": len(part.rows), "ids": sorted(ids[row] for row in part.rows)[:_SHOWN]}
        for name, part in parts.items()
    }


def _clusters(run: Walks) -> NDArray[np.int64]:
    """Return the cluster of each validation document, (M,); kept once found, so that a run goes on with the same."""
    record = run.directory / _CLUSTERS
    try:
        kept = read_sealed(record)
        if kept["mark"] == run.mark and len(kept["labels"]) == run.texts.num_samples:
            return np.array(kept["labels"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    total = int(run.texts.num_tokens.sum())
    work = Work(role="validation", unit="tokens", forward=1)
    with run.stages.stage("Clusters of the validation set", "tokens", total, work=work) as advance:
        run.return_to_start()
        labels = clusters_of(run.model, run.texts, run.config.num_clusters, max_length=run.max_length, advance=advance)
    write_record(record, {"mark": run.mark, "labels": labels.tolist()})
    return labels
