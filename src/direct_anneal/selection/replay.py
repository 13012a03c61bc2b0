"""Replay: general text beside the selection, so that annealing does not forget it.

N usable documents of the pool.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.errors import InputError, option
from direct_anneal.io.digests import hashed_order
from direct_anneal.solver import Selection, SelectionProblem


@dataclass(frozen=True)
class Replay:
    """General text that belongs to a selection.

    Attributes:
        share: of all tokens, as asked for.
        chosen: which documents it is, (N,) bool.
    """

    share: float
    chosen: NDArray[np.bool_]

    def entry(self, samples: pa.Table, selected: NDArray[np.intp], files: Sequence[str]) -> dict[str, Any]:
        """Return the manifest's entry: share asked for and reached, documents, tokens, domains and files.

        Args:
            samples: the usable documents, N rows.
            selected: places of the selection.
        """
        num_tokens = samples["num_tokens"].to_numpy()
        own, other = int(num_tokens[self.chosen].sum()), int(num_tokens[selected].sum())
        domains = samples["domain"].take(pa.array(np.flatnonzero(self.chosen))).to_pylist()
        return {
            "share": self.share,
            "share_reached": own / (own + other),
            "num_documents": len(domains),
            "num_tokens": own,
            "domains": dict(sorted(Counter(map(str, domains)).items())),
            "files": list(files),
        }


def replay_beside(
    config: SelectConfig, samples: pa.Table, selection: Selection, problem: SelectionProblem
) -> Replay | None:
    """Return the general text that a selection is asked to have beside it; None where it is asked for none.

    Documents that are forced out, by the user or as damaged by the objective, are not in it.

    Args:
        samples: the usable documents, N rows.

    Raises:
        InputError: as of `draw_replay`.
    """
    if not config.replay:
        return None
    selected = np.zeros(len(samples), dtype=bool)
    selected[selection.indices] = True
    return draw_replay(
        samples["id"].to_pylist(),
        samples["num_tokens"].to_numpy(),
        selected,
        problem.mask("forced_out"),
        share=config.replay,
        seed=config.seed,
    )


def draw_replay(
    ids: Sequence[str],
    num_tokens: NDArray[np.int64],
    selected: NDArray[np.bool_],
    left_out: NDArray[np.bool_],
    *,
    share: float,
    seed: int,
) -> Replay:
    """Draw documents at random from those that are not selected, until their share of all tokens is `share`.

    The order of drawing is that of hashes of seed and id, so that files, their order and workers change nothing. It
    stops where the share is nearest: off by half a document at most. Every document is as likely as another, so that
    what is drawn has the pool's own mixture, less what is selected or left out.

    Args:
        ids, num_tokens: of the pool, (N,).
        selected: (N,) bool.
        left_out: never drawn, (N,) bool.
        share: in (0, 1).

    Raises:
        InputError: what is left of the pool is too little for the share.

    Cost: O(N log N), a hash a document.
    """
    places = np.flatnonzero(~selected & ~left_out)
    own, there = int(num_tokens[selected].sum()), int(num_tokens[places].sum())
    wanted = share / (1 - share) * own
    if wanted > there:
        most = math.floor(1000 * there / (there + own)) / 1000
        raise InputError(
            field="replay",
            must=f"be at most {most:g} beside this selection: {there:,} tokens of the pool are neither selected nor "
            "left out",
            got=f"but {share:g} takes {wanted:,.0f}",
            do=f"lower it, select less, or mix other text in when you train ({option('mix')} of anneal)",
        )
    order = places[hashed_order((ids[place] for place in places.tolist()), key=f"replay {seed}")]
    reached = np.concatenate([[0], np.cumsum(num_tokens[order])])
    chosen = np.zeros(len(selected), dtype=bool)
    chosen[order[: max(1, int(np.argmin(np.abs(reached - wanted))))]] = True
    return Replay(share, chosen)
