"""Everything that is known of a run's documents: what `select` computes, and `solve` opens again.

N samples of the pool, M of the validation set, R sketch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.config.objective import Likeness
from direct_anneal.config.select import SelectConfig
from direct_anneal.curvature import Estimate
from direct_anneal.data import Corpus
from direct_anneal.features import SketchedGradients
from direct_anneal.gradients import GradientSketcher
from direct_anneal.io.digests import hashed_order
from direct_anneal.objectives import Gradients, Inputs
from direct_anneal.path import PathLosses
from direct_anneal.progress import Advance
from direct_anneal.run import checks, manifest
from direct_anneal.run.layout import RETAIN
from direct_anneal.run.run_dir import RunDir
from direct_anneal.run.sources import Tokenisation
from direct_anneal.selection.constraints import constraints
from direct_anneal.solver import Block, Map


@dataclass(frozen=True, kw_only=True)
class Known:
    """The documents, and the columns of them that are there.

    Attributes:
        corpora: the documents, of "pool" and "validation", and of "retain" where text is retained.
        pool, validation: their gradients, of documents that can be used; without rows where no gradients are needed.
        retain: gradients of the text that must not get worse; None where there is none.
        path: losses of the pool's usable documents along the descent path; None where they are not needed.
        fingerprint: what the validation set's features depend on, the model's and the optimizer's among it.
        tokens: how documents became tokens.
        origin: the run that made all this.
        build_sketcher: for curvatures that need the model, where that run has kept none.
        likeness: gives that of the pool and the validation set, as `run.likeness` measures it.
    """

    corpora: Mapping[str, Corpus]
    pool: SketchedGradients
    validation: SketchedGradients
    retain: SketchedGradients | None
    path: PathLosses | None
    fingerprint: Mapping[str, Any]
    tokens: Tokenisation
    origin: RunDir
    build_sketcher: Callable[[], GradientSketcher]
    likeness: Likeness

    @property
    def has_gradients(self) -> bool:
        return len(self.validation.units) > 0

    @property
    def gradients(self) -> dict[str, SketchedGradients]:
        """By role."""
        known = {"pool": self.pool, "validation": self.validation}
        return known if self.retain is None else {**known, RETAIN: self.retain}

    def corpora_entry(self) -> dict[str, dict[str, Any]]:
        """Return documents read in each role, and those that cannot be used."""
        return {role: manifest.corpus_entry(self.corpora[role], rows) for role, rows in self.gradients.items()}

    def left_out(self) -> list[str]:
        """Return documents left out of each corpus, for the user."""
        pairs = self.gradients.items()
        return [remark for role, rows in pairs for remark in checks.of_corpus(self.corpora[role], rows, role)]

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """An order of the validation set's usable samples, (M,), independent of the file's.

        The halves that are held out alternate in it.
        """
        return hashed_order(self.validation.samples["id"].to_pylist())

    def inputs(
        self,
        config: SelectConfig,
        estimate: Estimate | None,
        mapper: Map = map,
        advance: Advance | None = None,
    ) -> Inputs:
        """Return the inputs of objectives.

        Args:
            estimate: of the validation set in the order `order`; None where there are no gradients.
            mapper: carries out what takes all rows.
            advance: told how many rows are read.

        Raises:
            InputError: the pool is smaller than what is asked of it, or a domain or an id is not in it.
        """
        pool = self.pool.samples
        num_tokens = pool["num_tokens"].to_numpy()
        num_selected, token_budget = config.size_of(num_tokens)
        loaders: dict[str, Callable[[str], Any]] = {"samples": self._samples}
        if self.has_gradients:
            watch = advance if config.engine == "local" else None  # what is read elsewhere cannot tell of it here
            loaders["gradients"] = lambda role: self._gradients(role, watch)
            loaders["ngrams"] = self._ngrams
        if self.path is not None:
            loaders["path"] = {"pool": self.path}.__getitem__
        return Inputs(
            num_tokens=num_tokens,
            num_selected=num_selected,
            token_budget=token_budget,
            constraints={
                **constraints(config, pool, num_selected, token_budget),
                "tie_order": pc.rank(pool["id"], tiebreaker="first").to_numpy(),
            },
            loaders=loaders,
            estimate=None if estimate is None else lambda: estimate,
            summed=config.reduction == "sum",
            replay=config.replay or 0.0,
            likeness=self.likeness,
            mapper=mapper,
        )

    def _samples(self, role: str) -> pa.Table:
        samples = self.gradients[role].samples
        return samples if role == "pool" else samples.take(pa.array(self.order))

    def _gradients(self, role: str, watch: Advance | None) -> Gradients:
        found = self.gradients[role]
        if role != "pool":
            return Gradients([np.concatenate(found.units)[self.order]], found.norms[self.order])
        return Gradients(
            found.units if watch is None else [_Watched(block, watch) for block in found.units], found.norms
        )

    def _ngrams(self, role: str) -> Sequence[Block]:
        blocks = self.gradients[role].ngrams
        assert blocks is not None, "n-grams are weighed, but there are none"
        return blocks if role == "pool" else [np.concatenate(blocks)[self.order]]


@dataclass(frozen=True)
class _Watched:
    """A block of rows that tells how many are read."""

    block: Block
    advance: Advance

    @property
    def shape(self) -> tuple[int, ...]:
        return self.block.shape

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, rows: Any) -> NDArray[np.floating]:
        read = self.block[rows]
        self.advance(len(read))
        return read
