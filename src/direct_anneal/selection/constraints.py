"""Constraints on domains and documents, in the terms of a selection problem.

N samples of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from direct_anneal.config.select import SelectConfig
from direct_anneal.errors import InputError, option
from direct_anneal.io.id_lists import places_of, read_lines
from direct_anneal.solver import Quota


def constraints(
    config: SelectConfig, samples: pa.Table, num_selected: int | None, token_budget: int | None
) -> dict[str, Any]:
    """Return `SelectionProblem`'s quotas and forced samples.

    Args:
        samples: the pool's usable samples, with id and domain.

    Raises:
        InputError: a domain or an id is not in the pool, or a share has nothing that it could be a share of.
    """
    forced_in = _listed("force_in", config.force_in, samples["id"])
    forced_out = _listed("force_out", config.force_out, samples["id"])
    if len(both := np.intersect1d(forced_in, forced_out)):
        raise InputError(
            f"a document can be forced in or out, but {len(both)} are in both {option('force_in')} and "
            f"{option('force_out')} "
            f"({', '.join(samples['id'].take(both[:3]).to_pylist())}): take them out of one"
        )
    quotas = _quotas(config, samples["domain"], num_selected, token_budget)
    return {"quotas": quotas, "forced_in": forced_in, "forced_out": forced_out}


def _quotas(
    config: SelectConfig, domains: pa.ChunkedArray, num_selected: int | None, token_budget: int | None
) -> tuple[Quota, ...]:
    if not config.floors and not config.ceilings:
        return ()
    unit = config.quota_unit or ("samples" if token_budget is None else "tokens")
    whole = num_selected if unit == "samples" else token_budget
    labels = np.asarray(domains.cast(pa.string()).to_numpy(zero_copy_only=False), dtype=str)
    known = sorted(set(labels.tolist()))

    def amounts(field: str, asked: Mapping[str, int | float], whole_of_share: Any) -> dict[str, int]:
        found = {}
        for domain, amount in asked.items():
            if domain not in known:
                raise InputError(
                    field=field,
                    must="name a domain of the pool",
                    got=f"but {domain} is none",
                    do=f"there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}",
                )
            if isinstance(amount, float):
                if whole is None:
                    raise InputError(
                        f"{option(field)} {domain}={amount:g} is a share of the selection's {unit}, but how many "
                        f"these are is not known before: give a number of {unit}, or pass the other "
                        f"{option('quota_unit')}"
                    )
                # Up to the rounding of the product: a tenth of 30 is 3.
                amount = whole_of_share(amount * whole, 1e-9 * whole)
            found[domain] = int(amount)
        return found

    floors = amounts("floors", config.floors, lambda share, rounding: math.ceil(share - rounding))
    ceilings = amounts("ceilings", config.ceilings, lambda share, rounding: math.floor(share + rounding))
    return (Quota(labels, floors, ceilings, unit, "domain"),)


def _listed(field: str, path: str | None, ids: pa.ChunkedArray) -> NDArray[np.intp]:
    """Return positions of the ids in a file, one a line."""
    if path is None:
        return np.zeros(0, dtype=np.intp)
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(field=field, must="be a text file of ids, one a line", got=f"but {path}: {error}") from error
    places, missing = places_of(lines, ids)
    if missing:
        raise InputError(
            field=field,
            must="list ids of usable documents of the pool",
            got=f"but {path} has {len(missing)} that are none ({', '.join(map(repr, missing[:3]))})",
            do="ids are those in selection.parquet; one with a line break is written as a JSON string",
        )
    return np.sort(places)
