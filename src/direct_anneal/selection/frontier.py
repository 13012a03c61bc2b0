"""The frontier: the same problem solved over a range of them.

N samples of the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from direct_anneal.errors import InputError, option
from direct_anneal.objectives import Built, SelectionObjective
from direct_anneal.progress import Advance
from direct_anneal.solver import InfeasibleError

_POINTS = 8
_JUST_FEASIBLE = 1.02  # times the least feasible ratio: at the least itself nothing is left to choose


def trace(
    objective: SelectionObjective,
    built: Built,
    ratios: Sequence[float],
    samples: pa.Table,
    advance: Advance = lambda _: None,
) -> list[dict[str, Any]]:
    """Choose for each budget, ascending; return objective and composition.

    Args:
        objective: solves.
        built: whose problem is solved with each budget in place of its own.
        ratios: of budgets, in units of `built`; where empty, eight from just feasible to where the budget no
            longer binds.
        samples: N rows with domain and num_tokens.

    Raises:
        InputError: there is no budget to trace.

    Returns:
        A row for each ratio: ratio, status, objective, bound, used_ratio, num_selected, num_tokens, and domains: how
        many were selected of each. An infeasible one has status "infeasible" and nulls.
    """
    if built.units is None:
        raise InputError(
            field="frontier",
            must=f"be left out with {option('objective')} {objective.name}, under which nothing has a stiff cost",
            got=ratios or "a grid",
        )
    ratios = sorted(ratios) if ratios else _grid(objective, built)
    domains = samples["domain"].combine_chunks()
    num_tokens = samples["num_tokens"].to_numpy()
    rows = []
    for ratio in ratios:
        row: dict[str, Any] = {"ratio": float(ratio), "status": "infeasible"}
        row |= dict.fromkeys(("objective", "bound", "used_ratio", "num_selected", "num_tokens", "domains"))
        try:
            selection = objective.solve(replace(built.problem, budget=built.budget(ratio)))
        except InfeasibleError:
            pass
        else:
            counts = Counter(domains.take(pa.array(selection.indices)).to_pylist())
            row |= {
                "status": selection.status,
                "objective": selection.objective,
                "bound": selection.bound,
                "used_ratio": built.ratio(selection.budget_used),
                "num_selected": len(selection.indices),
                "num_tokens": int(num_tokens[selection.indices].sum()),
                "domains": [
                    {"domain": str(domain), "selected": count}
                    for domain, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
                ],
            }
        rows.append(row)
        advance(1)
    return rows


def _grid(objective: SelectionObjective, built: Built) -> list[float]:
    free = objective.solve(replace(built.problem, budget=np.inf))
    least, most = (built.ratio(cost) for cost in (free.stats["least_feasible"], free.budget_used))
    if not most > least * _JUST_FEASIBLE:
        return [most]
    first = max(least * _JUST_FEASIBLE, most * 1e-3)
    return [float(ratio) for ratio in np.geomspace(first, most * (1 + 1e-9), _POINTS)]
