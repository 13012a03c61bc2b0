"""selection.parquet: a row for every document of the pool, with what speaks for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from direct_anneal.data import Corpus
from direct_anneal.features import SketchedGradients
from direct_anneal.objectives import Built
from direct_anneal.solver import Selection

EVIDENCE_COLUMNS = [
    "id",
    "source",
    "row",
    "domain",
    "num_tokens",
    "loss",
    "grad_norm",
    "stiff_cost",
    "score",
    "weight",
    "rank",
    "selected",
]
REPLAY_COLUMN = "replay"


def evidence(
    corpus: Corpus,
    pool: SketchedGradients,
    built: Built,
    selection: Selection,
    replay: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Return a row for every sample of the pool, in its order, with the columns of `EVIDENCE_COLUMNS` and the
    objective's own.

    With general text beside the selection, (N,) of the usable documents, there is a column `replay`, too.

    Rank 1 is the strongest; the selected come first. What is quarantined has nulls, and is not selected. Stiff
    costs are null where the objective knows none.
    """
    count, problem = len(pool), built.problem
    costs = np.reshape(problem.stiff_cost, (count, -1)).sum(axis=1)  # of all bands
    chosen = np.zeros(count, dtype=bool)
    chosen[selection.indices] = True
    rest = np.flatnonzero(~chosen)
    assert problem.tie_order is not None
    rest = rest[np.lexsort((problem.tie_order[rest], -(selection.scores / problem.sizes)[rest]))]
    rank = np.empty(count, dtype=np.int64)
    rank[np.concatenate([selection.indices, rest])] = np.arange(1, count + 1)
    marks = ["selected"] if replay is None else ["selected", REPLAY_COLUMN]
    table = pool.samples
    for name, values in (
        ("stiff_cost", pa.nulls(count, pa.float64()) if built.units is None else costs),
        ("score", selection.scores),
        ("weight", selection.weights),
        ("rank", rank),
        ("selected", chosen),
        *([] if replay is None else [(REPLAY_COLUMN, replay)]),
        *built.columns.items(),
    ):
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    if len(pool.quarantined):
        left_out = pool.quarantined
        for name in marks:
            left_out = left_out.append_column(name, pa.array(np.zeros(len(left_out), dtype=bool)))
        table = pa.concat_tables([table, left_out], promote_options="default")
        table = table.take(pc.index_in(corpus.index["id"], table["id"].combine_chunks()))
    return table.select([*EVIDENCE_COLUMNS, *marks[1:], *built.columns])
